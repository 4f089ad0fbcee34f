"""The small aligned chat model and the lite moderator that ship in the wheel, and the code that
made them.
"""
