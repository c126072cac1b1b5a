"""The hub, asked once whether it is there: where it isn't, what was fetched before is used and nobody waits.

The hub's own library tries five more times, for each file of a model anew: minutes for a file, and a model has ten.
Called before anything is read from the hub.
"""

import functools

from dreamlab.progress import say

WAIT_S = 10.0


@functools.cache
def go_offline_if_silent() -> None:
    """Ask the hub for a sign of life; without one this process is offline from here on, which is told."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=WAIT_S)  # any answer is one
    except Exception as error:  # the network's libraries raise their own
        constants.HF_HUB_OFFLINE = True
        told = (
            f"The hub, {constants.ENDPOINT}, does not answer ({error or type(error).__name__}): only what was fetched"
        )
        say(f"{told} before is used.")
