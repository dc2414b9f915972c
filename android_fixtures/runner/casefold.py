"""Writes casefold.inc, Unicode's case folding and white space as Python has them: python3.11 casefold.py

Made with Python 3.11 (Unicode 14). What Unicode defines of a letter never changes, so a later Python only adds letters.
"""

import sys
from pathlib import Path

TARGET = Path(__file__).with_name("casefold.inc")


def ranges() -> list[list[int]]:
    """[first, last, step, delta]: letters that fold to one letter, each ``step`` apart and ``delta`` from theirs."""
    found: list[list[int]] = []
    for letter in range(sys.maxunicode + 1):
        folded = chr(letter).casefold()
        if len(folded) != 1 or ord(folded) == letter:
            continue
        delta = ord(folded) - letter
        if found and found[-1][3] == delta:
            first, last, step, _ = found[-1]
            apart = letter - last
            if apart <= 2 and (first == last or apart == step):
                found[-1] = [first, letter, apart, delta]
                continue
        found.append([letter, letter, 1, delta])
    return found


def text() -> str:
    """The whole file."""
    specials = [(code, chr(code).casefold()) for code in range(sys.maxunicode + 1) if len(chr(code).casefold()) > 1]
    spaces = [code for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    lines = ["// Written by casefold.py.", "static const Range RANGES[] = {"]
    lines += [f"    {{{first:#x}, {last:#x}, {step}, {delta}}}," for first, last, step, delta in ranges()]
    lines += ["};", "", "static const Special SPECIALS[] = {"]
    for code, folded in specials:
        escaped = "".join(f"\\x{byte:02x}" for byte in folded.encode())
        lines.append(f'    {{{code:#x}, "{escaped}"}},')
    lines += ["};", "", "static const uint32_t SPACES[] = {"]
    lines += [f"    {code:#x}," for code in spaces]
    return "\n".join([*lines, "};", ""])


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="ascii")
