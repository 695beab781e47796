"""`python -m trainer`: one rank of a training run, started by the agent."""

from trainer.rank import run
from trainer.work import TrainingWork

if __name__ == "__main__":
    run(TrainingWork())
