"""A user's state between processes: the history as columns, the profile as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.state import History, UserState
from services.processes.frames import FrameError


def pack_user(user: UserState) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and JSON of a frame."""
    history = user.history
    arrays: dict[str, NDArray[Any]] = {
        "history_keys": history.keys,
        "history_actions": history.actions,
        "history_values": history.values,
        "history_ts_ms": history.ts_ms,
    }
    return arrays, {"profile": dict(user.profile)}


def unpack_user(arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> UserState:
    """The reverse of `pack_user`. Raises FrameError."""
    try:
        history = History(
            np.asarray(arrays["history_keys"], np.int64),
            np.asarray(arrays["history_actions"], np.uint32),
            np.asarray(arrays["history_values"], np.float32),
            np.asarray(arrays["history_ts_ms"], np.int64),
        )
        return UserState(meta["profile"], history)
    except (KeyError, ValueError) as error:
        raise FrameError(f"no user in the frame: {error!r}") from error
