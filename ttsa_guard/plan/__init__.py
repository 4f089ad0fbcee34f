"""Plan a deployment: how many replicas a guard needs, how long its answers take, what they cost,
and what breaks first.
"""
