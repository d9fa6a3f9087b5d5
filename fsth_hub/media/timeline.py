"""When the packets of a file are shown: stamps that start anew, leap or go backwards are put in order.

FFmpeg's command line does so too, its libraries do not. Picture and sound are moved together, so that they stay in
step; and since it is done as packets come, reading stays a stream.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import av


LEAP = 2.0  # s without a packet that are looked into: does the other stream go on meanwhile?
LONGEST_STILL = 10.0  # s that a picture may stay where no sound tells that it did: FFmpeg's own limit
BACKWARDS = 0.05  # s that stamps may go back, since some are rounded
SLACK = 1.5  # s by which picture and sound of one moment may lie apart in a file


@dataclass
class _Track:
    """How far a stream has come, in s, as its packets are shown."""

    era: int = 0  # the shift that its last packet had
    last: float | None = None  # decoding time of that packet
    length: float = 0.0
    end: float = 0.0  # when all of it so far is over

    @property
    def next(self) -> float:
        return self.last + min(self.length, LEAP)


class Timeline:
    """The packets of a file that was just opened, with stamps in s that never start anew.

    Args:
        container: Nothing of it has been read.
        streams: Those that are moved together. Give the picture and its sound, whichever is wanted.
    """

    def __init__(self, container: av.container.InputContainer, *streams: av.stream.Stream | None):
        self.container, self.streams = container, [stream for stream in streams if stream is not None]
        self.tracks = {stream.index: _Track() for stream in self.streams}
        self.shifts = [0.0]

    @property
    def was_mended(self) -> bool:
        """Whether stamps of what was read had to be put in order."""
        return len(self.shifts) > 1

    def packets(self, wanted: av.stream.Stream) -> Iterator[av.Packet]:
        """One stream's packets, in the file's order; those without a decoding time flush the decoder."""
        for packet in self.container.demux(self.streams):
            if packet.dts is not None:
                shift = self._place(packet)
                if shift:
                    ticks = round(shift / packet.time_base)
                    packet.dts += ticks
                    packet.pts = None if packet.pts is None else packet.pts + ticks
            if packet.stream_index == wanted.index:
                yield packet

    def _place(self, packet: av.Packet) -> float:
        """By how many s to move a packet."""
        track = self.tracks[packet.stream_index]
        stamp, length = (float((ticks or 0) * packet.time_base) for ticks in (packet.dts, packet.duration))
        shown = stamp if packet.pts is None else float(packet.pts * packet.time_base)
        if length >= LEAP:  # in an mp4 a leap is the length of the packet before it
            length = track.length
        shift = self._shift(track, stamp, shown)
        track.last, track.length = stamp + shift, length
        track.end = max(track.end, shown + shift + min(length, LEAP))
        return shift

    def _shift(self, track: _Track, stamp: float, shown: float) -> float:
        now = len(self.shifts) - 1
        if track.last is None:
            track.era = now
            return self.shifts[now]
        # What was behind when the other stream began anew has still the old stamps.
        if self._follows(track, stamp + self.shifts[track.era]):
            return self.shifts[track.era]
        if track.era < now and abs(stamp + self.shifts[now] - track.next) < SLACK:
            track.era = now
            return self.shifts[now]
        # Go on where this stream ended, and not before the other has: nothing is lost.
        ends = [other.end for other in self.tracks.values() if other.end < track.end + LEAP]
        shift, needed = track.end - shown, max([track.next - stamp, *(end - shown for end in ends)])
        step = (
            track.length if 0 < track.length < LEAP else 1e-3
        )  # whole pictures later, so that they stay on the grid of a constant rate
        self.shifts.append(shift + step * max(0, math.ceil((needed - shift) / step - 0.01)))
        track.era = now + 1
        return self.shifts[-1]

    def _follows(self, track: _Track, stamp: float) -> bool:
        """Whether a packet may come at this time after the last of its stream."""
        if stamp - track.last < LEAP:
            return stamp >= track.last - BACKWARDS
        others = [other for other in self.tracks.values() if other is not track and other.last is not None]
        going_on = [other for other in others if other.next > track.last - LEAP]
        if not going_on:  # there is no sound, or it has ended
            return stamp - track.last < LONGEST_STILL
        return any(other.next > stamp - SLACK for other in going_on)
