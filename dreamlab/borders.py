"""What surrounds a subject: bars along the sides of a picture, and the background as far as its border shows it.

Only what stands out without knowing where the subject is. Called by look.py and doctor.py.
"""

import numpy as np

Pixels = np.ndarray  # (H, W, 3) uint8
Ring = np.ndarray  # (N, 3) float32, the pixels of a border

_EXACT_LEVELS = 3  # grey levels that compression moves a drawn colour by
_PLAIN_LEVELS = 16  # light falls off on a wall
_MAX_BAR = 0.35  # of a side's length
_MIN_BAR = 0.02  # below it lie the dark edges of tables and shelves
_MARGIN = 0.95  # of a row between letters and picture has the bar's colour
_LETTERED = 0.3  # of a row with letters
_EDGE_LEFT = 0.4  # of the row behind a bar: a background ends little by little, a bar at once


def bars(pixels: Pixels) -> dict[str, float]:
    """The sides along which a bar of one colour lies, with or without letters, and its share of the picture."""
    turned = {"top": pixels, "bottom": pixels[::-1], "left": pixels.transpose(1, 0, 2)}
    turned["right"] = turned["left"][::-1]
    return {side: thickness for side, rows in turned.items() if (thickness := _bar(rows.astype(np.int16)))}


def _bar(rows: np.ndarray) -> float:
    """The share of the rows that are a bar at their beginning; 0.0 where there is none."""
    longest = int(_MAX_BAR * len(rows))
    colour = np.median(rows[0], axis=0)
    filled = (np.abs(rows[: longest + 4] - colour).max(axis=2) <= _EXACT_LEVELS).mean(axis=1)
    lettered = filled >= _LETTERED
    reach = len(filled) if lettered.all() else int(np.argmin(lettered))
    margins = np.flatnonzero(filled[:reach] >= _MARGIN)
    if filled[0] < _MARGIN or not len(margins):
        return 0.0
    thickness = int(margins[-1]) + 1
    if not _MIN_BAR * len(rows) <= thickness <= longest:
        return 0.0
    # Behind it the picture begins at once; resampling and compression blur three rows
    return thickness / len(rows) if filled[thickness : thickness + 4].min() <= _EDGE_LEFT else 0.0


def ring(pixels: Pixels) -> Ring:
    """The outer eighth of a picture but for its bottom, on which subjects stand."""
    height, width = pixels.shape[:2]
    up, side = max(1, height // 8), max(1, width // 8)
    walls = pixels[up : height * 3 // 4]
    parts = (pixels[:up], walls[:, :side], walls[:, -side:])
    return np.concatenate([part.reshape(-1, 3) for part in parts]).astype(np.float32)


def plainness(border: Ring) -> float:
    """The share of a border that has its median colour."""
    near = np.abs(border - np.median(border, axis=0)).max(axis=1) <= _PLAIN_LEVELS
    return float(near.mean())


def colour_overlap(one: Ring, other: Ring) -> float:
    """The share of two borders' colours that is the same, from 0 to 1; where they lie doesn't matter."""
    return float(np.minimum(_histogram(one), _histogram(other)).sum())


def _histogram(border: Ring) -> np.ndarray:
    """Shares of 8 x 8 x 8 colours, each pixel shared out between neighbours, so that no bin's edge matters."""
    place = border / 32 - 0.5
    low, counts = np.floor(place).astype(int), np.zeros((10, 10, 10))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, place - low, 1 - place + low), axis=1)
        index = low + np.array(corner) + 1
        np.add.at(counts, (index[:, 0], index[:, 1], index[:, 2]), weight)
    return counts / max(1, len(border))
