"""The saver process of the fake trainer: a save takes QVL_FAKE_SAVE_S seconds more."""

import time

from trainer.checkpoint.saver_process import main
from trainer.testing.fake import seconds

if __name__ == "__main__":
    main(lambda: time.sleep(seconds("SAVE")))
