"""`python -m trainer`: one rank of a training run, started by the agent."""

from trainer.loop.work import TrainingWork
from trainer.process.rank import run

if __name__ == "__main__":
    run(TrainingWork())
