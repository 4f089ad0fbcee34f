"""Compare ways of mending flagged answers, under one budget and by a judge that none of them
searches against.
"""
