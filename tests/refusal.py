"""What every refusal of a command has to be."""


def refused(outcome: tuple[int, str, str], *says: str) -> None:
    """Check that (status, stdout, stderr) is a user's mistake, told in one message that holds these texts."""
    status, _, err = outcome
    assert status == 2, err
    assert err.startswith("error: ") and "Traceback" not in err
    for text in says:
        assert text in err, f"{text!r} is not in: {err}"
