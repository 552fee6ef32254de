"""The classic builder's output: dockerd's lines, in the order of the Dockerfile whatever runs first."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from builder.classic import LOG_LIMIT, Classic
from builder.faults import BuildFault
from builder.graph import SCRATCH, ContextSource, Copy, CopySource, Graph, HttpSource, ImageSource, Run, Step, Target, Vertex
from builder.language.instructions import Arg, Command, Dockerfile, Env, From, Instruction, Location, Stage
from builder.language.instructions import Copy as CopyInstruction
from builder.language.instructions import Run as RunInstruction
from engine.errors import InvalidParameter, NotFound
from engine.service.build import ClassicBuild
from engine.spec.build import Endpoint, Log, Options, Progress, Result, Status, VertexStatus
from engine.spec.image import ImageConfig
from engine.spec.platform import Platform

IMAGE = "sha256:" + "ab" * 32
BASE = "sha256:" + "0123456789ab" + "c" * 52
HOST = Platform(architecture="amd64")
SOURCE = ImageSource(reference="busybox", image=BASE, chain="sha256:1", platform=HOST)


def run(text: str) -> Run:
    return Run(args=("/bin/sh", "-c", text), env=(), cwd="/")


def at(line: int) -> Location:
    return Location(line, line)


class Case:
    """A Dockerfile, what it is lowered to, and the lines that come out."""

    def __init__(self, stages: Sequence[Stage], vertices: Sequence[Vertex], plan: Sequence[Step], **options: Any) -> None:
        build = {name: options.pop(name) for name in ("quiet", "remove", "force_remove") if name in options}
        arguments = options.pop("arguments", ())
        self.used = options.pop("used", ())
        self.classic = Classic(ClassicBuild(options=Options(**options), **build))
        self.dockerfile = Dockerfile(path="Dockerfile", text="", arguments=arguments, stages=tuple(stages))
        root = next((step.vertex for step in reversed(plan) if step.vertex is not None), len(vertices) - 1)
        target = Target(root=root, config=ImageConfig(), platform=HOST)
        self.graph = Graph(vertices=tuple(vertices), target=target, plan=tuple(plan), used=self.used)
        self.lines: list[dict[str, Any]] = []

    def begin(self) -> Case:
        self.classic.parsed(self.dockerfile)
        self._add(self.classic.planned(self.graph, [f"v{index}" for index in range(len(self.graph.vertices))]))
        return self

    def _add(self, lines: list[bytes]) -> None:
        self.lines += [json.loads(line) for line in lines]

    def started(self, index: int) -> None:
        self._add(self.classic.feed(Progress(vertexes=(VertexStatus(digest=f"v{index}", started="t"),))))

    def log(self, index: int, data: bytes, stream: int = 1) -> None:
        self._add(self.classic.feed(Progress(logs=(Log(vertex=f"v{index}", stream=stream, data=data),))))

    def completed(self, index: int, **more: Any) -> None:
        started = VertexStatus(digest=f"v{index}", started="t")
        ended = VertexStatus(digest=f"v{index}", started="t", completed="t", **more)
        self._add(self.classic.feed(Progress(vertexes=(started,))))
        self._add(self.classic.feed(Progress(vertexes=(ended,))))

    def finish(self) -> None:
        self._add(self.classic.finish(Result(image=IMAGE, digest="sha256:d")))

    def fail(self, error: Any) -> None:
        self._add(self.classic.fail(error))

    @property
    def text(self) -> str:
        """All that a terminal shows, with identifiers that only stand for something as #."""
        shown = "".join(line.get("stream", "") for line in self.lines)
        return re.sub(r"(?<=container )[0-9a-f]{12}|(?<=Running in )[0-9a-f]{12}", "#", shown)


def simple(**options: Any) -> Case:
    """FROM busybox, ENV, RUN, COPY."""
    body: tuple[Instruction, ...] = (
        Env(location=at(2), text="ENV a=b", pairs=(("a", "b"),)),
        RunInstruction(location=at(3), text="RUN make", command=Command(("make",), True)),
        CopyInstruction(location=at(4), text="COPY x /", sources=("x",), destination="/"),
    )
    vertices = (
        Vertex(op=SOURCE, name="[1/3] FROM busybox", stage=0, line=1),
        Vertex(op=ContextSource(name="context"), name="load"),
        Vertex(op=run("make"), inputs=(0,), name="[2/3] RUN make", stage=0, line=3),
        Vertex(op=Copy(sources=(CopySource(input=1, path="/x"),), destination="/"), inputs=(2, 1), name="[3/3] COPY", stage=0, line=4),
    )
    plan = (
        Step(created_by="ENV a=b", instruction="ENV a=b", stage=0, line=2),
        Step(created_by="RUN make", instruction="RUN make", vertex=2, stage=0, line=3),
        Step(created_by="COPY x /", instruction="COPY x /", vertex=3, stage=0, line=4),
    )
    return Case([Stage(0, "", From(location=at(1), text="FROM busybox", image="busybox"), body)], vertices, plan, **options)


def test_a_build_is_told_as_dockerd_tells_it() -> None:
    case = simple(tags=("app:latest", "app:1")).begin()
    assert case.text == "Step 1/4 : FROM busybox\n ---> 0123456789ab\nStep 2/4 : ENV a=b\n"
    case.started(2)
    case.started(1)
    assert case.text.endswith("Step 3/4 : RUN make\n ---> Running in #\n")
    case.log(2, b"out\n")
    case.log(2, b"err\n", 2)
    assert case.text.endswith("Step 3/4 : RUN make\n ---> Running in #\nout\n\x1b[91merr\n\x1b[0m")
    case.completed(2)
    case.completed(3)
    case.finish()
    shown = re.sub(r"---> [0-9a-f]{12}", "---> #", case.text)
    assert shown == (
        "Step 1/4 : FROM busybox\n ---> #\n"
        "Step 2/4 : ENV a=b\n ---> Running in #\n ---> Removed intermediate container #\n ---> #\n"
        "Step 3/4 : RUN make\n ---> Running in #\nout\n\x1b[91merr\n\x1b[0m ---> Removed intermediate container #\n ---> #\n"
        "Step 4/4 : COPY x /\n ---> #\n"
        "Successfully built abababababab\nSuccessfully tagged app:latest\nSuccessfully tagged app:1\n"
    )
    assert {"aux": {"ID": IMAGE}} in case.lines
    assert case.lines[-5] == {"stream": " ---> abababababab\n"}


def test_what_was_cached_says_so_and_the_configuration_around_it_too() -> None:
    case = simple().begin()
    case.completed(2, cached=True)
    case.completed(3, cached=True)
    case.finish()
    assert case.text.count(" ---> Using cache\n") == 3
    assert "Running in" not in case.text


def test_what_was_never_told_of_came_from_the_cache() -> None:
    """A result that was found whole by the key of the last step: nothing below it was looked at."""
    case = simple().begin()
    case.finish()
    assert case.text.count(" ---> Using cache\n") == 3


def test_quiet_tells_the_identifier_alone() -> None:
    case = simple(quiet=True, tags=("a:b",)).begin()
    case.completed(2)
    case.finish()
    assert case.lines == [{"stream": f"{IMAGE}\n"}]


def test_quiet_tells_all_when_it_fails() -> None:
    case = simple(quiet=True).begin()
    case.log(2, b"why\n")
    case.completed(2, error="exit code: 1")
    case.fail(BuildFault("process did not complete successfully: exit code: 1", code=1))
    assert "Step 3/4 : RUN make\n ---> Running in #\nwhy\n" in case.text
    assert case.lines[-1]["errorDetail"]["code"] == 1


def test_a_command_that_fails() -> None:
    case = simple(force_remove=True).begin()
    case.started(2)
    case.completed(2, error="exit code: 3")
    case.fail(BuildFault("process did not complete successfully: exit code: 3", code=3))
    message = "The command '/bin/sh -c make' returned a non-zero code: 3"
    assert case.text.endswith("Step 3/4 : RUN make\n ---> Running in #\n ---> Removed intermediate container #\n")
    assert case.lines[-1] == {"errorDetail": {"code": 3, "message": message}, "error": message}


def test_containers_are_kept_silently_when_asked() -> None:
    case = simple(remove=False).begin()
    case.completed(2)
    case.completed(3)
    case.finish()
    assert "Removed" not in case.text and case.text.count("Running in") == 2


def test_a_base_image_that_is_not_found_fails_in_the_stream() -> None:
    case = simple(arguments=(Arg(text="ARG V=1", arguments=(("V", "1"),)),))
    case.classic.parsed(case.dockerfile)
    case.fail(NotFound("pull access denied for busybox"))
    assert case.text == "Step 1/5 : ARG V=1\nStep 2/5 : FROM busybox\n"
    assert case.lines[-1]["error"] == "pull access denied for busybox"


def test_what_makes_no_sense_is_a_status_as_long_as_nothing_was_told() -> None:
    case = simple()
    mistake, missing = InvalidParameter("target stage could not be found"), NotFound("no such image")
    assert not case.classic.takes(missing)
    case.classic.parsed(case.dockerfile)
    assert not case.classic.takes(mistake) and case.classic.takes(missing)
    case.begin()
    assert case.classic.takes(mistake)


def test_a_pull_before_the_first_step_is_told() -> None:
    case = simple()
    case.classic.parsed(case.dockerfile)
    layer = "sha256:" + "5" * 64
    for status in (
        Status(id=layer, vertex="p", current=5, total=10, started="t"),
        Status(id=layer, vertex="p", current=7, total=10, started="t"),
        Status(id=layer, vertex="p", current=10, total=10, started="t", completed="t"),
    ):
        case._add(case.classic.feed(Progress(statuses=(status,))))
    assert [(line["status"], line["id"]) for line in case.lines] == [
        (text, "5" * 12) for text in ("Pulling fs layer", "Downloading", "Download complete")
    ]


def test_labels_are_steps_and_unused_arguments_a_warning() -> None:
    case = simple(labels={"z": "1", "a": "b c"}, build_args={"k": "1", "n": None, "HTTP_PROXY": "p", "used": "x"}, used=("used",)).begin()
    case.completed(2)
    case.completed(3)
    case.finish()
    assert re.findall(r"Step .*", case.text)[-2:] == ["Step 5/6 : LABEL a=b c", "Step 6/6 : LABEL z=1"]
    assert "[Warning] One or more build-args [k n] were not consumed\nSuccessfully built" in case.text


def test_a_scratch_image() -> None:
    stage = Stage(
        0, "", From(location=at(1), text="FROM scratch", image="scratch"),
        (CopyInstruction(location=at(2), text="COPY x /", sources=("x",), destination="/"),),
    )  # fmt: skip
    vertices = (
        Vertex(op=ContextSource(name="context"), name="load"),
        Vertex(op=Copy(sources=(CopySource(input=1, path="/x"),), destination="/"), inputs=(SCRATCH, 0), name="COPY", stage=0, line=2),
    )
    case = Case([stage], vertices, [Step(created_by="COPY", instruction="COPY x /", vertex=1, stage=0, line=2)]).begin()
    assert case.lines[2] == {"stream": " ---> \n"}


def test_what_outputs_make_of_the_image_is_told() -> None:
    def told(*outputs: Endpoint, **options: Any) -> str:
        case = simple(outputs=outputs, **options).begin()
        case.finish()
        return case.text

    pushed = Endpoint(type="registry", attributes={"name": "h:5000/a,b:1"})
    assert told(pushed).endswith(
        "Successfully tagged h:5000/a:latest\nSuccessfully tagged b:1\n"
        "Successfully pushed h:5000/a:latest@sha256:d\nSuccessfully pushed b:1@sha256:d\n"
    )
    passing = Endpoint(type="registry", attributes={"store": "false"})
    assert told(passing, tags=("h/a:2",)).endswith(f"built {IMAGE[7:19]}\nSuccessfully pushed h/a:2@sha256:d\n")
    bare = Endpoint(type="image", attributes={"name": "h/a", "push": "true", "push-by-digest": "true"})
    assert told(bare).endswith(f"built {IMAGE[7:19]}\nSuccessfully pushed h/a@sha256:d\n")
    assert told(Endpoint(type="cacheonly"), tags=("a:1",)).endswith(f"Successfully built {IMAGE[7:19]}\n")


def test_a_build_without_an_image() -> None:
    for quiet in (True, False):
        case = simple(outputs=(Endpoint(type="cacheonly"),), quiet=quiet).begin()
        told = "".join(json.loads(line).get("stream", "") for line in case.classic.finish(Result()))
        assert not told if quiet else re.fullmatch(r"(?s).*Step 4/4 : COPY x /\n.* ---> [0-9a-f]{12}\n", told)


def test_triggers_stand_below_their_from() -> None:
    case = simple()
    triggers = tuple(
        Step(created_by="RUN t", instruction="RUN t", stage=0, line=1, vertex=4 if number == 0 else None) for number in range(2)
    )
    vertices = (*case.graph.vertices, Vertex(op=run("t"), inputs=(0,), name="ONBUILD RUN t", stage=0, line=1))
    case = Case(case.dockerfile.stages, vertices, (*triggers, *case.graph.plan)).begin()
    case.completed(4)
    case.completed(2)
    case.completed(3)
    case.finish()
    assert case.text.startswith("Step 1/4 : FROM busybox\n# Executing 2 build triggers\n ---> Running in #\n")
    assert "Step 4/4 : COPY x /" in case.text


def test_a_source_that_fails_is_the_step_that_wants_it() -> None:
    case = simple()
    vertices = list(case.graph.vertices)
    vertices[1] = Vertex(op=HttpSource(url="http://h/x", filename="x"), name="http")
    case = Case(case.dockerfile.stages, vertices, case.graph.plan).begin()
    case.started(2)
    case.completed(1, error="404")
    case.completed(2, error="context canceled")
    case.fail(BuildFault("http://h/x: 404"))
    assert case.text.endswith("Step 3/4 : RUN make\n ---> Running in #\nStep 4/4 : COPY x /\n")
    assert case.lines[-1] == {"errorDetail": {"message": "http://h/x: 404"}, "error": "http://h/x: 404"}


def two_stages() -> Case:
    """Two stages of one RUN each, and a third that copies from both."""
    stages = [
        Stage(i, f"s{i}", From(location=at(10 * i + 1), text=f"FROM busybox AS s{i}", image="busybox"),
              (RunInstruction(location=at(10 * i + 2), text=f"RUN {i}", command=Command((f"{i}",), True)),))
        for i in range(2)
    ]  # fmt: skip
    stages.append(
        Stage(2, "", From(location=at(21), text="FROM s0", image="s0"),
              (CopyInstruction(location=at(22), text="COPY --from=s1 /x /", sources=("/x",), destination="/", from_="s1"),))
    )  # fmt: skip
    vertices = (
        Vertex(op=SOURCE, name="FROM", stage=0, line=1),
        Vertex(op=run("0"), inputs=(0,), name="RUN 0", stage=0, line=2),
        Vertex(op=run("1"), inputs=(0,), name="RUN 1", stage=1, line=12),
        Vertex(op=Copy(sources=(CopySource(input=1, path="/x"),), destination="/"), inputs=(1, 2), name="COPY", stage=2, line=22),
    )
    plan = [Step(created_by="", stage=s, line=line, vertex=v) for s, line, v in ((0, 2, 1), (1, 12, 2), (2, 22, 3))]
    return Case(stages, vertices, plan).begin()


def test_stages_beside_each_other_are_told_one_after_the_other() -> None:
    case = two_stages()
    case.started(2)
    case.log(2, b"second\n")
    assert "second" not in case.text
    case.log(1, b"first\n")
    assert case.text.endswith("first\n")
    case.completed(2)
    case.log(1, b"still\n")
    assert case.text.endswith("first\nstill\n")
    case.completed(1)
    assert case.text.index("still") < case.text.index("Step 3/6") < case.text.index("second") < case.text.index("Step 5/6")
    stage_ids = re.findall(r"Step 2/6.*?---> ([0-9a-f]{12})\n.*Step 5/6 : FROM s0\n ---> ([0-9a-f]{12})\n", case.text, re.DOTALL)
    assert stage_ids and stage_ids[0][0] == stage_ids[0][1]


def test_a_later_stage_that_fails_first() -> None:
    case = two_stages()
    case.started(1)
    case.log(1, b"half\n")
    case.log(2, b"why\n")
    case.completed(2, error="exit code: 9")
    case.completed(1, error="context canceled")
    case.fail(BuildFault("exit code: 9", code=9))
    assert case.text.endswith("half\nStep 3/6 : FROM busybox AS s1\n ---> 0123456789ab\nStep 4/6 : RUN 1\n ---> Running in #\nwhy\n")
    assert case.lines[-1]["error"] == "The command '/bin/sh -c 1' returned a non-zero code: 9"


def test_output_that_waits_has_a_limit() -> None:
    case = two_stages()
    for _ in range(5):
        case.log(2, b"x" * (LOG_LIMIT // 2))
    case.completed(1)
    case.completed(2)
    assert case.text.count("x" * (LOG_LIMIT // 2)) == 2
    assert "[output clipped, log limit 2MiB reached]" in case.text


@given(st.text(max_size=40), st.lists(st.integers(0, 160), max_size=6), st.randoms())
def test_output_in_any_pieces_is_the_same_text_in_order(text: str, cuts: list[int], chance: Any) -> None:
    data = text.encode()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = {1: [data[a:b] for a, b in itertools.pairwise(places)], 2: [b"[", data, b"]"]}
    case = two_stages()
    before = len(case.lines)
    pending = [(vertex, piece) for vertex in (1, 2) for piece in pieces[vertex]]
    while pending:
        vertex = chance.choice([1, 2])
        found = next((one for one in pending if one[0] == vertex), pending[0])
        pending.remove(found)
        case.log(found[0], found[1])
    case.completed(2)
    case.completed(1)
    case.completed(3)
    case.finish()
    told = "".join(line.get("stream", "") for line in case.lines[before:])
    assert told.index(text) <= told.index(f"[{text}]")
    assert re.findall(r"Step (\d)/6", case.text) == [str(number) for number in range(1, 7)]
