"""High dynamic range and wide gamut as sRGB: what a phone records in HLG, or a film is graded in PQ.

A frame goes through a table of colours (libavfilter's `lut3d`), which is made once for a clip: hundreds of nits of
BT.2100 are tone-mapped, as BT.2390 has it, to the hundred of an ordinary screen, and BT.2020's primaries brought to
sRGB's.
"""

import tempfile
from pathlib import Path

import av
import numpy as np


PQ, HLG, BT2020 = 16, 18, 9  # FFmpeg's numbers, as H.273 has them
WHITE, PEAK = 100.0, 1000.0  # cd/m2: of an ordinary screen's white, and the brightest that HDR is made for
TABLE_SIZE = 33  # of each side: the signal is nearly even to the eye, and between the entries is interpolated

LUMINANCE = np.array([0.2627, 0.6780, 0.0593])  # of BT.2020
TO_SRGB = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
)


def needs_mapping(frame: av.VideoFrame) -> bool:
    """Whether a decoded frame says that its colours are not those of an ordinary screen."""
    return frame.color_trc in (PQ, HLG) or frame.color_primaries == BT2020


class ToneMapper:
    """Decoded frames of one transfer function and BT.2020 as sRGB."""

    def __init__(self, transfer: int):
        self.table, self.graph, self.shape = colour_table(transfer), None, None

    def __call__(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        """The frame as height x width x 3 uint8 RGB."""
        frame = frame.reformat(width, height, "rgb48le")
        frame.color_trc = frame.color_primaries = 2  # unspecified: else a filter might convert them
        if self.graph is None or self.shape != (width, height):
            self.graph, self.shape = self._make_graph(frame), (width, height)
        self.graph.push(frame)
        return self.graph.pull().to_ndarray(format="rgb24")

    def _make_graph(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=1)
        with tempfile.TemporaryDirectory() as folder:  # the filter reads its table from a file, and at once
            path = Path(folder, "table.cube")
            np.savetxt(
                path, self.table.reshape(-1, 3), "%.6f", header=f"LUT_3D_SIZE {TABLE_SIZE}", comments="", newline="\n"
            )
            lut = graph.add("lut3d", file=str(path))
        sink = graph.add("buffersink")
        source.link_to(lut)
        lut.link_to(sink)
        graph.configure()
        return graph


def colour_table(transfer: int) -> np.ndarray:
    """sRGB, 0 to 1, for signals from 0 to 1 (n x n x n x 3): blue's is the first axis, red's the third."""
    steps = np.linspace(0, 1, TABLE_SIZE)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    signal = np.stack([red, green, blue], axis=-1)
    if transfer == PQ:
        light = tone_mapped(pq_to_light(signal))
    elif transfer == HLG:
        light = tone_mapped(hlg_to_light(signal))
    else:  # BT.2020 alone: as bright as sRGB
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    light = np.clip(light @ TO_SRGB.T, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def pq_to_light(signal: np.ndarray) -> np.ndarray:
    """Perceptual quantizer (ST 2084): a signal from 0 to 1 as cd/m2."""
    root = signal ** (1 / 78.84375)
    return 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """The inverse of `pq_to_light`."""
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_to_light(signal: np.ndarray) -> np.ndarray:
    """Hybrid log-gamma (BT.2100): a signal (... x 3, 0 to 1) as cd/m2 on a screen of 1000."""
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return PEAK * scene * (scene @ LUMINANCE)[..., None] ** 0.2  # a screen's gamma is 1.2 in all


def tone_mapped(light: np.ndarray) -> np.ndarray:
    """Light (... x 3, cd/m2) as shares of white: what is dark stays, what is bright is compressed, hues are kept."""
    brightest = light.max(axis=-1, keepdims=True)
    peak, white = light_to_pq(np.array([PEAK, WHITE]))
    level, most = np.minimum(light_to_pq(brightest) / peak, 1), white / peak
    knee = 1.5 * most - 0.5
    t = np.clip((level - knee) / (1 - knee), 0, 1)  # a Hermite spline from the knee to the peak, BT.2390 section 5.4.1
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    mapped = pq_to_light(np.where(level < knee, level, spline) * peak)
    return light * mapped / np.maximum(brightest, 1e-9) / WHITE
