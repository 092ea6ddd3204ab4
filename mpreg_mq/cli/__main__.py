"""``python -m mpreg_mq.cli``."""

from mpreg_mq.cli import main

if __name__ == "__main__":
    main()
