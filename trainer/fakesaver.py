"""The saver process of the fake trainer: a save takes QVL_FAKE_SAVE_S seconds more."""

import time

from trainer.fake import seconds
from trainer.saver import main

if __name__ == "__main__":
    main(lambda: time.sleep(seconds("SAVE")))
