"""What of a place endangers runs: each finding says what, why it matters, and what to change.

    finding.py      a finding
    slurmconf.py    the answers of scontrol, read
    judge_slurm.py  Slurm's configuration judged
    judge_place.py  storage, clock and machine judged
    look.py         asking scontrol, the storage and the machine
    probe.py        a job of two minutes that reports which signals arrive

Only look.py and probe.py touch anything; all judging is pure.
"""
