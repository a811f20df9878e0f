"""`python -m tests.arbiter`: the soak. A module of its own, for the processes it starts import the other one."""

from tests.arbiter.soak import main

if __name__ == "__main__":
    main()
