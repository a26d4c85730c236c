r"""What clips show beside single states: their frames, their motion, and of bouncing digits whether
they keep their speed, their walls and their class.

The **motion ratio** is the mean absolute difference of neighbouring frames over that of other
clips: below 1 the motion is slower or fades, which no distance of single frames sees. A track of
centroids is **right** if along each axis it lies within 1/32 of the frame's shorter side of a
motion with constant speed and bounces at the known walls (least greatest distance over a grid of
starts and speeds), at a speed that occurs in the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bezierdistill.data import Data
from bezierdistill.data.bouncing import BouncingData, Walls, reflected
from bezierdistill.data.views import frames as single_frames
from bezierdistill.errors import UserError
from bezierdistill.metrics.classifier import ClassifierFeatures, classifier_features
from bezierdistill.metrics.distances import frechet_distance
from bezierdistill.metrics.evaluation import Evaluator
from bezierdistill.metrics.features import in_batches
from bezierdistill.records import ClipScores, Motion

QUANTILES = (0.05, 0.5, 0.95)
FAINT = 0.1  # of white: darker pixels do not weigh in a centroid
NEAR, SLACK = 1 / 32, 0.1  # of a track, of the shorter side; of the bounds of the speed
STARTS, VELOCITIES = 49, 193  # tracks that a centroid's are compared with


def motion(frames: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring frames of clips ``(N, F, ...)``, ``(N,)``; one clip
    after the other, since those of pipelines are large.
    """
    return torch.stack([differences(own[None].float()).abs().mean() for own in frames])


def differences(frames: Tensor) -> Tensor:
    """Each frame but the first minus the one before: ``(N, F, ...)`` to ``(N, F - 1, ...)``."""
    return frames[:, 1:] - frames[:, :-1]


def motion_ratio(frames: Tensor, reference: Tensor) -> Motion:
    """The motion of clips ``(N, F, ...)``, bytes or numbers, over that of others in the same units,
    and how it is distributed.

    Raises:
        UserError: if the others stand still.
    """
    own, other = motion(frames), motion(reference)
    if not float(other.mean()):
        raise UserError("the clips to compare the motion with stand still, expected some that move")
    own, other = own / other.mean(), other / other.mean()
    points = torch.tensor(QUANTILES, dtype=own.dtype)
    return Motion(
        ratio=float(own.mean()),
        quantiles=tuple(own.quantile(points).tolist()),
        reference=tuple(other.quantile(points).tolist()),
    )


def centroids(frames: Tensor, faint: float = FAINT) -> Tensor:
    """Centroids ``(N, F, 2)``, row and column, of frames ``(N, F, 1, H, W)`` in [0, 1] above a
    faint grey; NaN of a black frame.
    """
    weights = (frames.mean(2).double() - faint).clamp_min(0)
    mass = weights.sum((2, 3))
    down, along = (torch.arange(n, dtype=torch.float64) for n in weights.shape[2:])
    return torch.stack([weights.sum(3) @ down / mass, weights.sum(2) @ along / mass], 2)


def right_tracks(places: Tensor, walls: Walls) -> Tensor:
    """Whether tracks of centroids ``(N, F, 2)`` are right (module docstring), ``(N,)``."""
    low, high = walls.speeds
    velocities, shorter = [], min(walls.sides)
    right = places.isfinite().flatten(1).all(1)
    times = torch.arange(places.shape[1], dtype=torch.float64)
    for axis, room in enumerate(walls.room):
        starts = torch.linspace(0, float(room), STARTS, dtype=torch.float64)
        speeds = torch.linspace(-high, high, VELOCITIES, dtype=torch.float64) * (1 + SLACK)
        known = reflected(starts[:, None, None] + speeds[:, None] * times, room).flatten(0, 1)
        own = (places[..., axis] - (walls.box - 1) / 2).nan_to_num()
        near = [torch.cdist(part, known, p=torch.inf).min(1) for part in own.split(256)]
        right &= torch.cat([found.values for found in near]) <= NEAR * shorter
        velocities.append(speeds[torch.cat([found.indices for found in near]) % VELOCITIES])
    speed = torch.stack(velocities).norm(dim=0)
    return right & (speed >= (1 - SLACK) * low) & (speed <= (1 + SLACK) * high)


def kept(frames: Tensor, classifier: ClassifierFeatures) -> Tensor:
    """Whether all frames of clips ``(N, F, C, H, W)`` in model units are of one class, ``(N,)``."""
    logits = in_batches(classifier.logits, frames.flatten(0, 1), classifier)
    found = logits.argmax(1).unflatten(0, frames.shape[:2])
    return (found == found[:, :1]).all(1)


def frame_classifier(data: Data) -> ClassifierFeatures | None:
    """The classifier of the frames of a single bouncing digit, trained once like others; None of
    other clips, whose frames need not show their class.
    """
    known = _tracked(data) is not None and data.classes
    return classifier_features(single_frames(data, f"{data.name}@frames")) if known else None


class ClipJudge:
    """Judges clips against the held-out ones of a data set; what it measures of these is kept.

    Args:
        evaluate: of the data set, which are clips.
        classifier: of single frames, by which digits are kept (:func:`frame_classifier`).

    Raises:
        UserError: if they are none.
    """

    def __init__(self, evaluate: Evaluator, classifier: ClassifierFeatures | None = None) -> None:
        data = evaluate.data
        if not data.scaling.is_clips:
            told = f"{data.name} holds states of shape {data.shape}"
            raise UserError(f"{told}, expected clips: clips:PATH or bouncing:PATH")
        self.evaluate, self.data, self.classifier = evaluate, data, classifier
        real = data.real(evaluate.size(10**9), evaluate.seed, "test")
        self.real = data.scaling.frames(real)
        self._held_out = self._known(self.real, "_real")

    def __call__(self, x: Tensor, against: Tensor | None = None) -> ClipScores:
        """Figures of clips ``(N, *shape)`` in model units.

        Args:
            x: the clips.
            against: others to compare the motion with instead of held-out ones, such as a
                teacher's from the same noise.
        """
        frames = self.data.scaling.frames
        own, other = frames(x), self.real if against is None else frames(against)
        return ClipScores(
            frames=self.evaluate.measure(x, _frechet(frames)),
            differences=self.evaluate.measure(x, _frechet(lambda part: differences(frames(part)))),
            motion=motion_ratio(own, other),
            against="test" if against is None else "given",
            **self._known(own, ""),
            **self._held_out,
        )

    def _known(self, frames: Tensor, ending: str) -> dict[str, Any]:
        found: dict[str, Tensor] = {}
        if (walls := _tracked(self.data)) is not None:
            found["tracks"] = right_tracks(centroids((frames + 1) / 2), walls)
        if self.classifier is not None:
            found["kept"] = kept(frames, self.classifier)
        return {name + ending: float(own.double().mean()) for name, own in found.items()}


def _frechet(part: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], float]:
    """The Frechet distance of what clips are split into, ``(N, M, ...)``."""
    return lambda a, b: frechet_distance(part(a).flatten(0, 1), part(b).flatten(0, 1))


def _tracked(data: Data) -> Walls | None:
    """The walls of a single bouncing digit whose frames are as they were made."""
    if not isinstance(data, BouncingData) or data.digits > 1:
        return None
    return data.walls if tuple(data.shape[1:]) == data.walls.sides else None
