"""From a signal, or from segments, to embeddings: what a user of a trained encoder calls.

Legend: N segments, C channels, T samples, E width of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import DataError
from mc_wearables.data.config import IngestOptions
from mc_wearables.data.recording import Recording
from mc_wearables.data.segmenter import REASONS, cut_segments
from mc_wearables.data.segments import Segments, SignalKind
from mc_wearables.encoders import SignalEncoder, recalibrate_batchnorm
from mc_wearables.evaluation import Features

_BATCH = 128  # segments at a time: beyond this a CPU gains nothing
_CALIBRATION = 2048  # segments behind the BatchNorm statistics of an untrained encoder


def embed(
    signal: np.ndarray,
    *,
    sampling_rate: float,
    encoder: SignalEncoder,
    kind: SignalKind,
    units: str | None = None,
) -> np.ndarray:
    """Embeddings of one recording: cleaned, resampled and cut as :func:`mc_wearables.data.ingest` does.

    Args:
        signal: (C, T) or (T,) samples in any one unit; NaN where missing.
        sampling_rate: Hz.
        encoder: trained; see :func:`mc_wearables.encoders.load_encoder`.
        kind: ``"ppg"`` or ``"ecg"``: what was measured.
        units: for messages; segments are z-scored.

    Returns:
        (N, E) float32, a row for each whole segment of the length the encoder was made for.

    Raises:
        DataError: not one whole segment comes out, with the reasons, or another number of channels than the encoder takes.

    >>> from mc_wearables.encoders_config import EncoderConfig
    >>> encoder = SignalEncoder(
    ...     EncoderConfig(sampling_rate=64, seconds=10, channels=1, architecture="resnet", width=16)
    ... ).eval()
    >>> beat = np.exp(-((np.arange(60 * 100) / 100 % 0.8 - 0.4) ** 2) / 0.01)
    >>> embed(beat, sampling_rate=100, encoder=encoder, kind="ppg").shape
    (6, 16)
    """
    samples = np.atleast_2d(np.asarray(signal, dtype=np.float32))
    config = encoder.config
    options = IngestOptions(signal=kind, seconds=config.seconds, rate=config.sampling_rate)
    recording = Recording(
        signal=samples,
        sampling_rate=float(sampling_rate),
        participant="signal",
        channels=tuple(f"channel {number}" for number in range(1, len(samples) + 1)),
        kind=kind,
        units=units or "unknown",
        source="the signal",
    )
    cut = cut_segments(recording, options)
    if not len(cut.signals):
        reasons = "; ".join(dict.fromkeys(REASONS[rejection.reason] for rejection in cut.rejected))
        raise DataError(
            f"not one whole segment of {config.seconds:g} s in {recording.seconds:.4g} s of signal: {reasons or 'too short'}"
        )
    segments = Segments.of(cut.signals, config.sampling_rate, kind, np.zeros(len(cut.signals), dtype=np.int64))
    return embed_segments(encoder, segments).values


@torch.inference_mode()
def embed_segments(encoder: SignalEncoder, segments: Segments, *, batch_size: int = _BATCH) -> Features:
    """Embeddings of all segments, with their participants, sessions and labels.

    Args:
        encoder: put into evaluation mode; works on the device it is on.
        segments: of the encoder's rate, as many channels as it takes.
        batch_size: segments at a time.

    Raises:
        DataError: no segments, or of another rate or number of channels.
    """
    check_fits(encoder, segments)
    encoder.eval()
    device = next(encoder.parameters()).device
    rows = [encoder(x_BCT.to(device)).float().cpu() for x_BCT in _batches(segments, batch_size)]
    return Features.of(torch.cat(rows), segments)


def untrained_like(encoder: SignalEncoder, segments: Segments, *, seed: int = 0) -> SignalEncoder:
    """The same architecture with random weights, its BatchNorm statistics taken from ``segments``: the honest baseline.

    Fresh statistics would fade a deep encoder's output to nothing; see
    :func:`~mc_wearables.encoders.recalibrate_batchnorm`.

    Args:
        encoder: whose configuration to take.
        segments: of training participants.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = SignalEncoder(encoder.config).to(next(encoder.parameters()).device)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(segments))[:_CALIBRATION]
    device = next(fresh.parameters()).device
    recalibrate_batchnorm(fresh, (x.to(device) for x in _batches(segments.where(np.sort(order)), _BATCH)))
    return fresh.eval()


def check_fits(encoder: SignalEncoder, segments: Segments) -> None:
    """Raise DataError when the encoder was made for other segments."""
    config = encoder.config
    if not len(segments):
        raise DataError("there are no segments to embed")
    if segments.sampling_rate != config.sampling_rate or segments.channels != config.channels:
        raise DataError(
            f"the encoder takes {config.channels} channels at {config.sampling_rate:g} Hz, the segments have "
            f"{segments.channels} at {segments.sampling_rate:g} Hz: ingest with --rate {config.sampling_rate:g} and as many "
            "--channels"
        )


def _batches(segments: Segments, batch_size: int) -> Iterator[Tensor]:
    for begin in range(0, len(segments), batch_size):
        yield segments.rows(range(begin, min(begin + batch_size, len(segments))))
