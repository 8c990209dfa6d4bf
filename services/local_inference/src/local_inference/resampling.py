"""From one sample rate to another."""

from local_inference.synthesizer import FORMAT


def resampled(pcm: bytes, sample_rate: int) -> bytes:
    """Mono s16le speech at the rate that it is served with; to be run in a worker thread."""
    import numpy as np
    import soxr

    speech: bytes = soxr.resample(np.frombuffer(pcm, dtype="<i2"), sample_rate, FORMAT.sample_rate).tobytes()
    return speech
