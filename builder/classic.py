"""The output of `POST /build`: dockerd's lines (`Step 1/4 : FROM busybox`, ` ---> Using cache`, …) from a build's progress. Pure.

Steps are told in the order of the Dockerfile, though stages run beside each other: the first step that is not over is told live, what the
ones after it print waits. The identifiers behind ` ---> ` stand for steps and not for images, but for the base image's and the last one,
which is the image's: there are no images and containers in between. Texts follow dockerd 26.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Sequence

from builder.export import exportfiles
from builder.faults import BuildFault
from builder.graph import ContextSource, Copy, GitSource, Graph, HttpSource, ImageSource, Run, Stack
from builder.language.instructions import Add, Dockerfile, Instruction
from builder.language.instructions import Copy as CopyInstruction
from engine.errors import InvalidParameter, KnarrError
from engine.service.build import ClassicBuild
from engine.spec.build import Log, Progress, Result, Status, VertexStatus
from engine.wire import jsonstream

LOG_LIMIT = 2 << 20
"""Bytes of output of one step that wait for its turn, BuildKit's limit of a step's log; what is told live has none."""

_CANCELLED = "context canceled"  # how progress words it
_SOURCES = (ImageSource, ContextSource, HttpSource, GitSource)
_PROXIES = frozenset(
    name for word in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy") for name in (word, word.upper())
)  # fmt: skip


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _short(image: str) -> str:
    return image.removeprefix("sha256:")[:12]


class _Vertex:
    """What is known of a vertex, and of its output what was not told yet."""

    __slots__ = ("cached", "clipped", "completed", "decoders", "error", "fresh", "logs", "started", "told", "waiting")

    def __init__(self) -> None:
        self.started = self.completed = self.cached = self.clipped = self.told = self.fresh = False
        self.error = ""
        self.logs: list[tuple[int, bytes]] = []
        self.waiting = 0
        self.decoders: dict[int, codecs.IncrementalDecoder] = {}

    def update(self, status: VertexStatus) -> None:
        self.fresh = not self.started and status.started is not None and status.completed is None
        self.started = self.started or status.started is not None
        self.completed = self.completed or status.completed is not None
        self.cached = self.cached or status.cached
        self.error = self.error or status.error

    def add(self, log: Log) -> None:
        self.started, self.fresh = True, False
        if self.waiting + len(log.data) <= LOG_LIMIT:
            self.logs.append((log.stream, log.data))
            self.waiting += len(log.data)
        elif not self.clipped:
            self.clipped = True
            self.logs.append((2, b"[output clipped, log limit %dMiB reached]\n" % (LOG_LIMIT >> 20)))

    def take(self) -> Iterable[bytes]:
        """Lines for the output so far. A character that is cut between two pieces is told with the second."""
        for stream, data in self.logs:
            decoder = self.decoders.get(stream)
            if decoder is None:
                decoder = self.decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
            text = decoder.decode(data)
            if text:
                yield jsonstream.stream(text if stream == 1 else f"\x1b[91m{text}\x1b[0m")
        self.logs.clear()
        self.waiting = 0


class _Step:
    """A line of the Dockerfile. `kind`: argument (before the first FROM), from, run (said to happen in a container), copy.

    `vertex`: its index in the graph, None for what changes the configuration alone.
    """

    __slots__ = ("headed", "id", "kind", "neighbour", "ran", "running", "stage", "text", "trigger", "vertex")

    def __init__(self, kind: str, text: str, stage: int, vertex: int | None = None, *, trigger: bool = False) -> None:
        self.kind = kind
        self.text = text
        self.stage = stage
        self.vertex = vertex
        self.trigger = trigger
        self.id = ""
        self.neighbour: _Step | None = None
        self.headed = self.running = self.ran = False


class Classic:
    """The output of one build, in pieces for its client. First `parsed`, then `planned`; `feed` at any time; last `finish` or `fail`."""

    def __init__(self, build: ClassicBuild) -> None:
        self._build = build
        self._quiet: list[bytes] = []
        self._quiet_bytes = 0
        self._dockerfile: Dockerfile | None = None
        self._graph: Graph | None = None
        self._steps: list[_Step] = []
        self._total = self._number = self._at = 0
        self._digests: Sequence[str] = ()
        self._vertices: dict[str, _Vertex] = {}
        self._last_id: dict[int, str] = {}
        self._roots: dict[int, int | None] = {}
        self._image = ""
        self._shown: set[str] = set()
        self._begun: list[_Vertex] = []

    def parsed(self, dockerfile: Dockerfile) -> None:
        """The Dockerfile could be read."""
        self._dockerfile = dockerfile

    def planned(self, graph: Graph, digests: Sequence[str]) -> list[bytes]:
        """What is going to be done; `digests` are the names of the graph's vertices in `Progress`."""
        assert self._dockerfile is not None
        self._graph = graph
        self._digests = digests
        self._vertices = {digest: _Vertex() for digest in digests}
        last = max((step.stage for step in graph.plan), default=len(self._dockerfile.stages) - 1)
        self._lay_out({step.stage for step in graph.plan} | {last})
        return self._told(self._advance())

    def feed(self, *messages: Progress) -> list[bytes]:
        """Lines for what happened. That a step began and that it was in the cache can be two messages made at one moment: a beginning that
        is the only news is told with the next message."""
        lines: list[bytes] = []
        for vertex in self._begun:
            vertex.fresh = False
        self._begun = []
        for progress in messages:
            for status in progress.vertexes:
                if (known := self._vertices.get(status.digest)) is not None:
                    known.update(status)
                    if known.fresh:
                        self._begun.append(known)
            for log in progress.logs:
                if (known := self._vertices.get(log.vertex)) is not None:
                    known.add(log)
            if self._graph is None:
                lines += [line for bar in progress.statuses for line in self._pulling(bar)]
        return self._told([*lines, *self._advance()])

    def finish(self, result: Result) -> list[bytes]:
        """The rest, after the image was made."""
        self._image = result.image
        if self._build.quiet:
            return [jsonstream.stream(f"{result.image}\n")] if result.image else []
        lines = list(self._advance(over=True))
        if result.image:
            lines.append(jsonstream.aux({"ID": result.image}))
        if unused := self._unused():
            lines.append(jsonstream.stream(f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed\n"))
        if result.image:
            lines.append(jsonstream.stream(f"Successfully built {_short(result.image)}\n"))
        return [*lines, *self._named(result)]

    def _named(self, result: Result) -> Iterable[bytes]:
        """What the image is called here, and where it was pushed to."""
        for output in exportfiles.outputs(self._build.options):
            if output.kind == "image":
                names = [name if output.digests else name.with_default_tag() for name in output.names]
                if output.stored and not output.digests:
                    yield from (jsonstream.stream(f"Successfully tagged {name.familiar}\n") for name in names)
                if output.push:
                    yield from (jsonstream.stream(f"Successfully pushed {name.familiar}@{result.digest}\n") for name in names)

    def takes(self, error: KnarrError) -> bool:
        """Whether an error belongs into the stream. A Dockerfile or a parameter that makes no sense is a status, as long as no step was
        told of; that a base image is not to be had is told below its FROM."""
        return self._graph is not None or (self._dockerfile is not None and error.status != InvalidParameter.status)

    def fail(self, error: KnarrError) -> list[bytes]:
        """The rest of a build that failed after its Dockerfile was read."""
        lines: list[bytes] = []
        if self._graph is None and self._dockerfile is not None:  # a base image, most likely
            self._lay_out(set(range(len(self._dockerfile.stages))))
            while self._at < len(self._steps):
                step = self._steps[self._at]
                lines += self._head(step)
                self._at += 1
                if step.kind == "from":
                    break
        elif self._graph is not None and (failed := self._failed()) is not None:
            lines += self._up_to(failed)
        return [*self._quiet, *self._told(lines, loud=True), self._error(error)]

    def _told(self, lines: Iterable[bytes], *, loud: bool = False) -> list[bytes]:
        if not self._build.quiet or loud:
            return list(lines)
        for line in lines:  # they are wanted when the build fails
            if self._quiet_bytes < LOG_LIMIT:
                self._quiet.append(line)
                self._quiet_bytes += len(line)
        return []

    # steps

    def _lay_out(self, stages: set[int]) -> None:
        dockerfile, graph = self._dockerfile, self._graph
        assert dockerfile is not None
        made: dict[tuple[int, int], list[int | None]] = {}
        triggers: dict[int, list[_Step]] = {}
        bases = {(stage.index, stage.base.location.line) for stage in dockerfile.stages}
        for step in graph.plan if graph is not None else ():
            place = (step.stage, step.line)
            if place not in bases:
                made.setdefault(place, []).append(step.vertex)
            elif step.instruction[:4].upper() == "FROM":
                self._roots[step.stage] = step.vertex
            else:  # of ONBUILD
                kind = "copy" if step.vertex is not None and self._copies(step.vertex) else "run"
                triggers.setdefault(step.stage, []).append(_Step(kind, step.instruction, step.stage, step.vertex, trigger=True))
        self._steps = [_Step("argument", argument.text, -1) for argument in dockerfile.arguments]
        for stage in dockerfile.stages:
            if stage.index in stages:
                self._steps.append(_Step("from", stage.base.text, stage.index))
                if stage.index in triggers:
                    self._steps += triggers[stage.index]
                self._steps += [self._step(one, stage.index, made) for one in stage.instructions]
        last = self._steps[-1].stage if self._steps else -1
        labels = sorted(self._build.options.labels.items())
        self._steps += [_Step("run", f"LABEL {name}={value}", last) for name, value in labels]
        self._find_neighbours()
        self._total = sum(not step.trigger for step in self._steps)

    def _step(self, instruction: Instruction, stage: int, made: dict[tuple[int, int], list[int | None]]) -> _Step:
        vertices = made.get((stage, instruction.location.line)) or [None]
        found = next((vertex for vertex in reversed(vertices) if vertex is not None), None)
        copies = isinstance(instruction, Add | CopyInstruction)
        return _Step("copy" if copies else "run", instruction.text, stage, found)

    def _copies(self, vertex: int) -> bool:
        assert self._graph is not None
        return isinstance(self._graph.vertices[vertex].op, Copy | Stack)

    def _state(self, index: int) -> _Vertex:
        return self._vertices[self._digests[index]]

    def _failed(self) -> int | None:
        """The place of the first step that failed, or whose source did; not of one that ended because another failed."""
        assert self._graph is not None
        for place, step in enumerate(self._steps):
            if step.vertex is None:
                continue
            vertex = self._graph.vertices[step.vertex]
            sources = [index for index in vertex.inputs if index >= 0 and isinstance(self._graph.vertices[index].op, _SOURCES)]
            if any(self._state(index).error not in ("", _CANCELLED) for index in (step.vertex, *sources)):
                return place
        return None

    # lines

    def _advance(self, *, over: bool = False) -> list[bytes]:
        """Tell all that can be told in order. `over`: everything has happened that is going to."""
        lines: list[bytes] = []
        while self._at < len(self._steps):
            step = self._steps[self._at]
            lines += self._head(step)
            if not self._tell(step, lines, over):
                break
            self._at += 1
        return lines

    def _head(self, step: _Step) -> list[bytes]:
        if step.headed:
            return []
        step.headed = True
        if step.trigger:
            before = self._steps[self._at - 1] if self._at else None
            if before is not None and before.trigger:
                return []
            count = sum(one.trigger and one.stage == step.stage for one in self._steps)
            return [jsonstream.stream(f"# Executing {count} build trigger{'s' if count > 1 else ''}"), jsonstream.stream("\n")]
        self._number += 1
        return [jsonstream.stream(f"Step {self._number}/{self._total} : {step.text}"), jsonstream.stream("\n")]

    def _tell(self, step: _Step, lines: list[bytes], over: bool) -> bool:
        """Add what there is to tell of a step; whether that was all."""
        if step.kind == "argument":
            return True
        if step.kind == "from":
            self._last_id[step.stage] = base = self._base(step.stage)
            following = self._at + 1 < len(self._steps) and self._steps[self._at + 1].trigger
            if not following:
                lines.append(jsonstream.stream(f" ---> {base}\n"))
            return True
        if step.vertex is None:
            return self._tell_configuration(step, lines, over)
        vertex = self._state(step.vertex)
        if vertex.error:
            return False
        if not step.running and (vertex.told or vertex.cached or (over and not vertex.started)):
            step.ran = False
            return self._end(step, [jsonstream.stream(" ---> Using cache\n")], lines, over)
        if not vertex.started or (vertex.fresh and not over):
            return False
        if not step.running:
            step.running = step.ran = True
            if step.kind == "run":
                lines.append(self._container(step, "Running in"))
        lines += vertex.take()
        if not vertex.completed and not over:
            return False
        vertex.told = True
        removed = [self._container(step, "Removed intermediate container")] if step.kind == "run" and self._build.remove else []
        return self._end(step, removed, lines, over)

    def _tell_configuration(self, step: _Step, lines: list[bytes], over: bool) -> bool:
        """What makes no layer takes no time either. It counts as cached when what surrounds it in its stage is."""
        neighbour = step.neighbour
        cached = False
        if neighbour is not None and neighbour.vertex is not None:
            vertex = self._state(neighbour.vertex)
            if not ((vertex.started and not vertex.fresh) or vertex.cached or vertex.error or vertex.told or over):
                return False
            cached = not neighbour.ran if neighbour.id else vertex.cached or (over and not vertex.started)
        if cached:
            return self._end(step, [jsonstream.stream(" ---> Using cache\n")], lines, over)
        ran = [self._container(step, "Running in")]
        if self._build.remove:
            ran.append(self._container(step, "Removed intermediate container"))
        return self._end(step, ran, lines, over)

    def _find_neighbours(self) -> None:
        """For each step the next one of the same stage that makes a layer, or else the one before."""
        for steps in (reversed(self._steps), self._steps):
            found: dict[int, _Step] = {}
            for step in steps:
                step.neighbour = step.neighbour or found.get(step.stage)
                if step.vertex is not None:
                    found[step.stage] = step

    def _end(self, step: _Step, before: list[bytes], lines: list[bytes], over: bool) -> bool:
        """The last lines of a step. Those of the very last one wait for the image's identifier."""
        last = self._at == len(self._steps) - 1
        if last and not over:
            return False
        lines += before
        step.id = _short(self._image) if last and self._image else _hex(f"{self._last_id.get(step.stage, '')} {step.text}")
        self._last_id[step.stage] = step.id
        lines.append(jsonstream.stream(f" ---> {step.id}\n"))
        return True

    def _container(self, step: _Step, what: str) -> bytes:
        return jsonstream.stream(f" ---> {what} {_hex(f'container {self._build.id} {self._at} {step.text}')}\n")

    def _base(self, stage: int) -> str:
        """What ` ---> ` shows after a FROM: the base image, or the last step of the stage that it names; "" for scratch."""
        dockerfile, graph = self._dockerfile, self._graph
        assert dockerfile is not None and graph is not None
        wanted = dockerfile.stages[stage].base.image.lower()
        for other in reversed(dockerfile.stages[:stage]):
            if wanted in (other.name, str(other.index)) and other.index in self._last_id:
                return self._last_id[other.index]
        root = self._roots.get(stage)
        own = [root] if root is not None else []
        own += [index for index, vertex in enumerate(graph.vertices) if vertex.stage == stage and isinstance(vertex.op, ImageSource)]
        mine = [step.vertex for step in self._steps if step.stage == stage and step.vertex is not None]
        if stage == self._steps[-1].stage:
            mine.append(graph.target.root)
        for index in [*own[:1], *mine[:1]]:
            image = self._image_below(index)
            if image:
                return _short(image)
        return ""

    def _image_below(self, index: int) -> str:
        graph = self._graph
        assert graph is not None
        while index >= 0:
            vertex = graph.vertices[index]
            if isinstance(vertex.op, ImageSource):
                return vertex.op.image
            if isinstance(vertex.op, _SOURCES) or not vertex.inputs:
                return ""
            index = vertex.inputs[0]
        return ""

    def _unused(self) -> list[str]:
        used = set(self._graph.used) if self._graph is not None else set()
        return sorted(name for name in self._build.options.build_args if name not in used and name not in _PROXIES)

    def _up_to(self, place: int) -> list[bytes]:
        """What was not told yet of the steps before the one that failed, and what that one printed.

        Others that were under way are told as far as they came; of those behind them in their stage there is nothing to tell.
        """
        lines: list[bytes] = []
        broken: set[int] = set()
        while self._at < place:
            step = self._steps[self._at]
            vertex = None if step.vertex is None else self._state(step.vertex)
            if step.stage in broken:
                self._number += not step.trigger and not step.headed
            elif vertex is None or (vertex.completed and not vertex.error):
                lines += self._head(step)
                self._tell(step, lines, over=True)
            else:
                broken.add(step.stage)
                lines += self._broken_off(step, vertex)
            self._at += 1
        step = self._steps[place]
        assert step.vertex is not None
        return [*lines, *self._broken_off(step, self._state(step.vertex))]

    def _broken_off(self, step: _Step, vertex: _Vertex) -> list[bytes]:
        lines = self._head(step)
        if step.kind == "run":
            if not step.running:
                lines.append(self._container(step, "Running in"))
            lines += vertex.take()
            if self._build.force_remove:
                lines.append(self._container(step, "Removed intermediate container"))
        return lines

    def _error(self, error: KnarrError) -> bytes:
        code = error.code if isinstance(error, BuildFault) else 0
        place = self._failed() if self._graph is not None else None
        if code and place is not None and self._graph is not None:
            vertex = self._steps[place].vertex
            op = self._graph.vertices[vertex].op if vertex is not None else None
            if isinstance(op, Run):
                return jsonstream.error(f"The command '{' '.join(op.args)}' returned a non-zero code: {code}", code)
        return jsonstream.error(str(error), code)

    def _pulling(self, status: Status) -> list[bytes]:
        """Lines of a base image's pull, as `docker pull` has them."""
        id = _short(status.id.removeprefix("extracting "))
        extracting = status.name.startswith("extracting") or status.id.startswith("extracting")
        if status.completed is not None:
            return [jsonstream.status("Pull complete" if extracting else "Download complete", id)]
        if id not in self._shown:
            self._shown.add(id)
            return [jsonstream.status("Pulling fs layer", id)]
        if status.total or status.current:
            return [jsonstream.progress("Extracting" if extracting else "Downloading", id, status.current, status.total)]
        return []
