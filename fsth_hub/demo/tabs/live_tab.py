"""The Live tab: the camera moves the portrait, frame by frame.

Only what has been seen can be used: the reference pose is the first frame with a face, and the crop stays where it
was then. Of the pictures that come while a frame is generated Gradio keeps the last, so the newest is always next.
Nothing of the camera is kept but the clip that the visitor asks to record, and that without the camera's
own pictures.
"""

import io
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from ...landmarks import BlinkCloser, Face, LandmarkSmoother, MotionAdapter
from ...landmarks.regions import REGIONS, keep_regions
from ...media.reading import Clip
from ...media.writing import write_clip
from ...models.cropping import CropBox, crop_box, to_crop
from ...models.errors import FsthError
from ...provenance.credentials import OUTPUT_METADATA, Origin, sign
from ...provenance.watermark import add_watermark
from ..errors import told_to_visitor
from ..inputs import Portraits, Seen, checked_portraits, chosen_faces
from ..people import Kept
from ..studio import HEAVY, Studio
from . import Page
from .animator import FINE_TUNED
from .animator import PORTRAITS as AS_THEY_ARE
from .motion_controls import motion_controls


LIVE = "live"  # the tab's id
TIME_LIMIT = 120  # seconds for one visitor; then the next one's turn comes
# Seconds between two pictures of the camera: as many as two cores generate, for each costs the browser time of the
# same cores.
STREAM_EVERY = 0.1
# Gradio would ask for 1920 x 1440, of which the landmarks alone are used.
CAMERA = gr.WebcamOptions(constraints={"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}})
FPS = 25  # of a recording
QUALITY = 95  # of the JPEGs that it is kept as: as plain pixels two minutes of 512 x 512 are a gigabyte


@dataclass(eq=False)
class LiveSession:
    """One visitor's camera: the portrait it moves, the pose it started from, what was recorded.

    Args:
        key: The portraits' files and chosen faces that `person` was made of, or which fine-tuned person it is.
        person, generator: What generates; None before the first frame.
        origin: What a recording's Content Credentials tell.
        smooth: Quietens the detector's jitter; it knows the camera's last landmarks.
        close_blinks: Leads the camera's blinks to their end.
        reference: The camera's landmarks that count as the portrait's own; None before a face was seen.
        adapter, motion: Turns the camera's landmarks into the portrait's; and the motion and strength it does so by.
        box: The crop, pixels of the camera's picture, fixed since the first face.
        face: The face of the last frame; None where it was lost.
        looked: When the last picture of the camera was looked at, s.
        times: When the last frames were generated, for the frame rate, s.
        delays: How long each of them took from the camera's picture, s.
        recording: When each frame was generated, and the frame as JPEG.
    """

    key: tuple = ()
    person: object = None
    generator: object = None
    origin: Origin | None = None
    smooth: LandmarkSmoother = field(default_factory=LandmarkSmoother)
    close_blinks: BlinkCloser = field(default_factory=BlinkCloser)
    reference: np.ndarray | None = None
    adapter: MotionAdapter | None = None
    motion: tuple[str, float] | None = None
    box: CropBox | None = None
    face: Face | None = None
    looked: float = 0.0
    times: deque = field(default_factory=lambda: deque(maxlen=20))
    delays: deque = field(default_factory=lambda: deque(maxlen=20))
    recording: list[tuple[float, bytes]] = field(default_factory=list)

    def reset_pose(self) -> None:
        """Take the next frame's pose as the portrait's own."""
        self.reference = self.adapter = self.motion = self.box = self.face = None
        self.smooth = LandmarkSmoother()  # the crop, in which it counts, will be another
        self.close_blinks = BlinkCloser()  # it may be somebody else's face

    def adapt(self, points: np.ndarray | None, motion: str, strength: float, regions: tuple[str, ...]) -> np.ndarray:
        """The portrait's landmarks for the camera's, of which some regions alone may move; these may change at any
        time."""
        if self.motion != (motion, strength):
            held = self.adapter and self.adapter.last
            self.adapter = MotionAdapter(self.person.landmarks, self.reference, motion, strength)
            self.adapter.last, self.motion = self.adapter.last if held is None else held, (motion, strength)
        if points is not None and motion == "relative":
            points = keep_regions(points, self.reference, regions)
        return self.adapter(points)

    @property
    def frame_rate(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else 0.0


class Live:
    """The tab's handlers, and the visitors whose cameras run.

    The sessions are kept here and not in a `gr.State`: Gradio keeps a state for an hour after the page was closed, and
    these hold faces and networks.
    """

    def __init__(self, studio: Studio):
        self.studio = studio
        self.sessions: dict[str | None, LiveSession] = {}

    def session(self, request: gr.Request | None) -> LiveSession:
        """The visitor's own."""
        return self.sessions.setdefault(request and request.session_hash, LiveSession())

    def forget(self, request: gr.Request) -> None:
        """The visitor has closed the page."""
        self.sessions.pop(request.session_hash, None)

    def reset_pose(self, request: gr.Request) -> None:
        self.studio.worker.submit(self.session(request).reset_pose)  # between two frames, not in the midst of one

    def step(
        self,
        picture: np.ndarray | None,
        portraits: Portraits,
        seen: list[Seen],
        record: bool,
        motion: str = "relative",
        strength: float = 1.0,
        regions: list[str] = REGIONS,
        person: str = AS_THEY_ARE,
        request: gr.Request = None,
    ) -> tuple[np.ndarray | None, str]:
        """One picture of the camera (H x W x 3 uint8) in, one frame and a line about it out."""
        session, begun = self.session(request), time.monotonic()
        with told_to_visitor():
            if picture is None:
                return None, ""
            own = self.studio.people.get(request) if person == FINE_TUNED else None
            paths = None if own else checked_portraits(portraits)
            regions = tuple(name for name in REGIONS if name in regions)  # of a running camera also none
            how = motion, strength, regions
            who = own or (paths, chosen_faces(paths, seen))
            frame = self.studio.worker.submit(self._generate, picture, session, who, how).result()
        now = time.monotonic()
        if session.times and now - session.times[-1] > 2:  # the camera was off meanwhile
            session.times.clear()
            session.delays.clear()
        session.times.append(now)
        session.delays.append(now - begun)
        if record and session.reference is not None and len(session.recording) < FPS * TIME_LIMIT:
            session.recording.append((now, to_jpeg(frame)))
        words = []
        if len(session.times) > 2:
            delay = 1000 * np.median(session.delays)
            words += [f"{session.frame_rate:.1f} frames per second", f"{delay:.0f} ms from the camera's picture"]
        if session.face is None:
            words.append("no face is seen: look into the camera")
        if motion == "relative" and not regions:
            words.append("nothing moves: tick what should")
        if session.recording:
            words.append(f"recorded: {session.recording[-1][0] - session.recording[0][0]:.0f} s")
        return frame, ", ".join(words)

    def _generate(
        self, picture: np.ndarray, session: LiveSession, who: Kept | tuple[list[str], list[int]], how: tuple
    ) -> np.ndarray:
        """On the worker's thread; `who` is a fine-tuned person, or portraits' files and their chosen faces."""
        own = isinstance(who, Kept)
        pipe = self.studio.pipeline(who.model if own else None)
        # by its place: the session keeps the person, so that no other one can come to lie there
        if session.key != (key := (id(who.identity),) if own else (*who[0], *who[1])):
            session.person = who.identity if own else pipe.embed(*who)
            portraits = None if own else who[0]
            session.origin = Origin.of(pipe.model_name, session.person, portraits, ("driving clip", None))
            session.generator, session.key = pipe.generator_for(session.person), key
            session.recording = []  # a clip shows one person
            session.reset_pose()
        session.face = pipe.detector.track(picture, session.face) if session.face else None
        if session.face is None and (found := pipe.detector.detect(picture)):
            session.face = found[0]
        points = None
        if session.face:
            session.box = session.box or crop_box(session.face.points)
            points = to_crop(session.face.points, session.box, pipe.size)
            session.reference = points if session.reference is None else session.reference
        now = time.monotonic()
        elapsed, session.looked = now - session.looked, now
        points = session.smooth(points, elapsed)
        if how[0] == "relative":
            points = session.close_blinks(points, elapsed)
        moved = session.person.landmarks if session.reference is None else session.adapt(points, *how)
        # with PyTorch, which the page is imported without
        from ...pipelines.parallel import num_workers, one_share

        # at the default size: the networks take most of the time, and see as many pixels whatever the size
        with one_share(num_workers(session.generator)):
            return add_watermark(pipe.generate_frame(session.generator, session.person, moved))

    def save(self, request: gr.Request = None) -> Iterator[dict]:
        """Write what was recorded, with the timing it had, signed, and forget it."""
        session = self.session(request)
        recording = list(session.recording)  # the camera may still run
        with told_to_visitor(), tempfile.TemporaryDirectory(prefix="fsth-") as folder:
            if len(recording) < 2:
                raise FsthError(
                    'Nothing was recorded: tick "Keep a recording", start the camera, and save when you are done.'
                )
            path = Path(folder, "live.mp4")
            write_recording(path, recording, session.origin)
            session.recording = session.recording[len(recording) :]
            yield gr.update(value=str(path), visible=True)


def to_jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def from_jpeg(frame: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(frame)))


def write_recording(path: Path, recording: list[tuple[float, bytes]], origin: Origin) -> None:
    """Write frames generated at irregular times as a signed clip of constant frame rate."""
    begun, (height, width) = recording[0][0], from_jpeg(recording[0][1]).shape[:2]

    def read() -> Iterator[tuple[float, float, np.ndarray]]:
        return ((moment - begun, 1 / FPS, from_jpeg(frame)) for moment, frame in recording)

    clip = Clip(FPS, width, height, recording[-1][0] - begun, None, None, read)
    write_clip(path, clip, FPS, metadata=OUTPUT_METADATA, finish=partial(sign, origin=origin))


# The camera stops where its tab is left: Gradio's own button, for the component keeps the stream to itself.
STOP_CAMERA = "() => {document.querySelector('#camera video')?.srcObject?.getTracks().forEach(track => track.stop())}"


def live_tab(page: Page) -> None:
    """Build the tab and wire it; the camera stops where the visitor turns to another tab."""
    live, portraits = Live(page.studio), page.portraits
    with gr.Row():
        with gr.Column(min_width=300):
            camera = gr.Image(
                label="2. Your camera", sources=["webcam"], webcam_options=CAMERA, streaming=True, type="numpy",
                height=300, elem_id="camera",
            )  # fmt: skip
            gr.Markdown(
                "Look straight ahead with a calm face and press the button in the picture: your pose of that moment "
                "becomes the portrait's own. "
                f"It runs for {TIME_LIMIT // 60} minutes at most, and one visitor at a time. "
                "The time below the result is this server's, without the way to it and back.",
                elem_id="live-help",
            )
            how = _options()
            record = gr.Checkbox(False, label="Keep a recording", elem_id="record")
            with gr.Row():
                reset = gr.Button("Reset pose", size="md", min_width=120, elem_id="reset-pose")
                save = gr.Button("Save recording", size="md", min_width=120, elem_id="save-recording")
        with gr.Column(min_width=300):
            result = gr.Image(
                label="3. The portrait, live", format="jpeg", height=360, buttons=[], interactive=False,
                alt_text="The portrait as the camera moves it", elem_id="live-result",
            )  # fmt: skip
            rate = gr.Markdown(elem_id="frame-rate")
            clip = gr.Video(label="Recording", interactive=False, visible=False, height=360, elem_id="recording")

    private = {"api_visibility": "private", "show_progress": "hidden"}
    stream = camera.stream(
        live.step,
        inputs=[camera, portraits.gallery, portraits.seen, record, *how],
        outputs=[result, rate],
        stream_every=STREAM_EVERY,
        time_limit=TIME_LIMIT,
        **HEAVY,
        **private,
    )
    reset.click(live.reset_pose, None, None, queue=False, **private)
    save.click(live.save, None, clip, **private)
    for name, tab in page.tabs.items():
        if name != LIVE:
            tab.select(None, None, None, js=STOP_CAMERA, cancels=stream, api_visibility="private")
    page.blocks.unload(live.forget)


def _options() -> list[gr.components.Component]:
    """How the portrait follows, closed at first; all can be changed while the camera runs."""
    with gr.Accordion("Options", open=False, elem_id="live-options"):
        person = gr.Radio(
            [("The portraits, as they are", AS_THEY_ARE), ("Your fine-tuned person", FINE_TUNED)],
            value=AS_THEY_ARE,
            label="Who moves",
            elem_id="live-person",
        )
        motion, strength, regions = motion_controls("you do", "your", "live-")
    return [motion, strength, regions, person]
