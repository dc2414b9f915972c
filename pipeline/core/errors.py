"""The one exception that a user's mistake raises, and the exit codes every command shares."""

EXIT_PASS = 0  # the work is done; for a verdict: PASS
EXIT_FAIL = 1  # the verdict is FAIL, or a self-test of the product failed
EXIT_USAGE = 2  # bad input: arguments, recipe, contract, dataset, model or environment
EXIT_INCONCLUSIVE = 3  # the verdict is INCONCLUSIVE: too few images to tell, or a reference that has not learnt
EXIT_REFUSED = 4  # the verdict is REFUSED: the two sides are not of the same contract, dataset, model or llama.cpp
EXIT_BUG = 70  # a bug of this program, EX_SOFTWARE of sysexits.h: neither PASS nor FAIL, nothing was judged
EXIT_INTERRUPTED = 130  # Ctrl-C, SIGTERM or SIGHUP; run the same command again to resume


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong, where, and what to do about it.

    Command lines print it without a traceback and exit with ``EXIT_USAGE``.
    """


class NotReleased(Exception):
    """A run that must not be released. ``code`` is the exit code: that of its verdict, or ``EXIT_REFUSED``."""

    def __init__(self, message: str, code: int = EXIT_REFUSED) -> None:
        super().__init__(message)
        self.code = code


class CheckFailed(Exception):
    """The product failed one of its own checks (merge self-test, GGUF check). Exits with ``EXIT_FAIL``."""
