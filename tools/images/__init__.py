"""Container images: what goes in (pins), how they are built, run and compared.

Standard library only, Python 3.9 or later: all that a host needs is Python and an engine.
"""
