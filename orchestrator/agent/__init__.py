"""The node agent: starts the ranks, takes the notices, ends everything in time.

Standard library only, so that it stands within 0.1 s; of this project it imports
contract, clock and errors.
"""
