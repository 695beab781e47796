"""Decisions as pure functions on frozen values: no input or output, no clock.

Imports nothing but `orchestrator.contract`.
"""
