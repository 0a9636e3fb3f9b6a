"""Words for counts and times."""


def counted(number: int, what: str) -> str:
    """1 recording, 1,200 recordings."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def lasting(seconds: float) -> str:
    """1.3 s, 42 s, 3.5 min, 12.25 h."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.2f} h"
