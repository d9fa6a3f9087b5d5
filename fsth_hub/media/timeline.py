"""When the packets of a file are shown: stamps that start anew, leap or go backwards are put in order.

FFmpeg's command line does so too, its libraries do not. Picture and sound are moved together, so that they stay in
step; and since it is done as packets come, reading stays a stream.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import av


LEAP = 2.0  # s without a packet that are looked into: does the other stream go on meanwhile?
LONGEST_STILL = 10.0  # s that a picture may stay where no sound tells that it did: FFmpeg's own limit
BACKWARDS = 0.05  # s that stamps may go back, since some are rounded
LATEST_REFERENCE = 0.2  # s between the pieces of an edit list
SLACK = 1.5  # s by which picture and sound of one moment may lie apart in a file
MOST_HELD = 300  # packets: what is behind a break waits for the other stream's
# s of a part's sound that may give way to the next part: encoders begin and end with silence, so that a part's sound
# is longer than its pictures by up to two packets.
LAP = 0.05


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
        return (packet for packet in self._placed() if packet.stream_index == wanted.index)

    def _placed(self) -> Iterator[av.Packet]:
        """All packets. What comes after a break is held until the other stream breaks too: only then is it known
        where each of them has ended, for parsers give the last picture of a part after the first sound of the next."""
        unread, again, held = iter(self.container.demux(self.streams)), deque(), []
        while True:
            packet = again.popleft() if again else next(unread, None)
            if packet is None or packet.dts is None:
                if held:
                    self._join(held)
                    again.extendleft(reversed([*held, *([] if packet is None else [packet])]))
                    held = []
                elif packet is None:
                    return
                else:
                    yield packet
                continue
            waits = any(other.stream_index == packet.stream_index for other in held)
            if packet.is_discard and not waits:  # what an edit list leaves out has any stamps
                yield self._moved(packet)
                continue
            if waits or not self._goes_on(packet):
                held.append(packet)
                joined = self._is_time(held)
                if joined:
                    self._join(held)
            else:
                self._place(packet)
                yield packet
                joined = bool(held) and self._goes_on(held[0])  # the other stream has come that far: it was no break
            if joined:
                again.extendleft(reversed(held))
                held = []

    def _place(self, packet: av.Packet) -> None:
        """Move a packet to where it is shown."""
        track = self.tracks[packet.stream_index]
        shift, length = self.shifts[track.era], float((packet.duration or 0) * packet.time_base)
        stamp = _decoded(packet) + shift
        if not length and track.last is not None:  # a transport stream does not tell
            length = stamp - track.last
        if not 0 < length < LEAP:  # in an mp4 a leap is the length of the packet before it
            length = track.length
        track.last, track.length = stamp, length
        track.end = max(track.end, _shown(packet) + shift + length)
        self._moved(packet)

    def _moved(self, packet: av.Packet) -> av.Packet:
        shift = self.shifts[self.tracks[packet.stream_index].era]
        if shift:
            ticks = round(shift / packet.time_base)
            packet.dts += ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
        return packet

    def _goes_on(self, packet: av.Packet) -> bool:
        """Whether a packet comes where its stream is, by the shift of the last one or by that of the other stream."""
        track, now, stamp = self.tracks[packet.stream_index], len(self.shifts) - 1, _decoded(packet)
        if track.last is not None:
            # What was behind when the other stream began anew has still the old stamps.
            shift = self.shifts[track.era]
            if self._follows(track, stamp + shift):
                return True
            # After an edit list's cut a picture that others refer to is decoded as much before it is shown.
            if stamp + shift < track.last and abs(_shown(packet) + shift - track.end) < LATEST_REFERENCE:
                return True
        if track.last is None or track.era < now and abs(stamp + self.shifts[now] - track.next) < SLACK:
            track.era = now
            return True
        return False

    def _follows(self, track: _Track, stamp: float) -> bool:
        """Whether a packet may come at this time after the last of its stream."""
        if stamp - track.last < LEAP:
            return stamp >= track.last - BACKWARDS
        going_on = self._going_on(track)
        if not going_on:  # there is no sound, or it has ended
            return stamp - track.last < LONGEST_STILL
        return any(other.next > stamp - SLACK for other in going_on)

    def _going_on(self, track: _Track) -> list[_Track]:
        """The other streams, unless they ended before."""
        others = [other for other in self.tracks.values() if other is not track and other.last is not None]
        return [other for other in others if other.next > track.last - LEAP]

    def _is_time(self, held: list[av.Packet]) -> bool:
        """Whether packets after a break need not wait for another stream's break any longer."""
        broken = [self.tracks[index] for index in {packet.stream_index for packet in held}]
        if all(other in broken for other in self._going_on(self.tracks[held[0].stream_index])):
            return True
        span = abs(_decoded(held[-1]) - _decoded(held[0]))
        return len(held) > MOST_HELD or held[-1].stream_index == held[0].stream_index and span > SLACK

    def _join(self, held: list[av.Packet]) -> None:
        """Let the streams that broke go on where they ended: pictures without a gap, and the sound in step with them.

        They are whole pictures later where the sound needs it, so that they stay on the grid of a constant rate.
        """
        starts: dict[int, float] = {}
        held = [packet for packet in held if not packet.is_discard]
        for packet in held:
            starts[packet.stream_index] = min(starts.get(packet.stream_index, math.inf), _shown(packet))
        # the picture first, if it broke
        lead, *_ = sorted(starts, key=lambda index: self.container.streams[index].type != "video")
        track = self.tracks[lead]
        shift, lap = track.end - starts[lead], 0.0
        for index, other in self.tracks.items():
            if other is not track and other.last is not None and other.end < track.end + LEAP:
                lap = max(lap, other.end - starts.get(index, starts[lead]) - shift)
        if lap > LAP:
            step = track.length if 0 < track.length < LEAP else 1e-3
            shift += step * math.ceil((lap - LAP) / step)
        self.shifts.append(shift)
        for index in starts:
            first = next(packet for packet in held if packet.stream_index == index)
            track = self.tracks[index]
            track.era, track.last = len(self.shifts) - 1, _decoded(first) + shift - track.length


def _decoded(packet: av.Packet) -> float:
    return float(packet.dts * packet.time_base)


def _shown(packet: av.Packet) -> float:
    return float((packet.dts if packet.pts is None else packet.pts) * packet.time_base)
