"""What an installation is called: a wheel puts the whole project into this package, so that Python finds one name more.

In a checkout it has these two files only, and `python -m easel` is the same command.
"""
