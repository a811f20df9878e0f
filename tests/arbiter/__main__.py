"""`python -m tests.arbiter` runs the soak test. A separate module, because the worker processes import
tests.arbiter.soak."""

from tests.arbiter.soak import main

if __name__ == "__main__":
    main()
