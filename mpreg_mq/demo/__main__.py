"""``python -m mpreg_mq.demo``."""

from mpreg_mq.demo import main

if __name__ == "__main__":
    main()
