"""The agent's storage helper: everything of an attempt that touches the run directory
and is not a checkpoint. A process of its own, so that a slow storage never delays a signal.
"""
