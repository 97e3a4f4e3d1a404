"""Valid pictures of each type that the API takes: hooks of schemathesis."""

import io

import schemathesis
from hypothesis import strategies as st

from tests.support.strokes import draw, picture

FORMATS = ("png", "jpeg", "webp", "gif", "bmp", "tiff")
SEEDS = st.integers(0, 200)


def encoded(seed: int, kind: str) -> bytes:
    stream = io.BytesIO()
    picture(draw(seed)).save(stream, kind.upper())
    return stream.getvalue()


for kind in FORMATS:
    schemathesis.openapi.media_type(f"image/{kind}", st.builds(encoded, SEEDS, st.just(kind)))
schemathesis.openapi.media_type(
    "application/octet-stream", st.builds(encoded, SEEDS, st.sampled_from(FORMATS))
)
