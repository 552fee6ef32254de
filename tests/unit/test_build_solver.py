"""The solver with a worker that does nothing but count: what is executed, what is found, what runs beside what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio

from builder.faults import BuildFault
from builder.graph import SCRATCH, ContextSource, Copy, CopySource, Graph, ImageSource, MakeFolder, Run, Stack, Target, Vertex
from builder.progress import Reporter
from builder.solving.solver import Outcome, Solver
from builder.tree import Tree
from engine.aio.locks import KeyedLocks
from engine.spec.build import Progress
from engine.spec.image import ImageConfig
from engine.spec.platform import Platform
from engine.store.buildcache import BuildCache
from engine.store.db import Database
from engine.store.layout import Layout
from engine.store.snapshots import PROVISIONAL, Snapshot, Snapshots

AMD64 = Platform(architecture="amd64")
BASE = ImageSource(reference="base", image="sha256:1", chain="chain", platform=AMD64)


class Fake:
    """Makes empty layers. `contexts`: what a context's content is; `outputs`: what a RUN's layer has, for those that copy from it."""

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots = snapshots
        self.done: Counter[str] = Counter()
        self.contents: dict[str, str] = {"context": "c1"}
        self.opened: Counter[str] = Counter()
        self.failing: set[str] = set()
        self.waits: dict[str, Callable[[], object]] = {}
        self.made = 0
        self.written: dict[int, str] = {}

    async def source(self, op: ContextSource, vertex: str) -> Tree:
        self.opened[op.name] += 1
        await trio.lowlevel.checkpoint()
        return Tree(layers=(op.name,), identity=self.contents[op.name])

    async def image(self, op: ImageSource, vertex: str) -> Snapshot | None:
        self.opened["image"] += 1
        return self.snapshots.get(op.chain)

    def tree(self, row: Snapshot | None) -> Tree:
        return Tree(identity=self.written.get(row.number, "") if row is not None else "")

    async def selection(self, op: Copy, trees: Sequence[Tree]) -> str:
        return repr([(one.path, trees[one.input].identity if one.input >= 0 else one.content) for one in op.sources])

    async def content(self, tree: Tree, path: str) -> str:
        return f"{tree.identity} {path}"

    async def execute(self, op: Run | Copy | MakeFolder | Stack, inputs: Sequence[Outcome], vertex: str) -> Snapshot:
        name = " ".join(op.args) if isinstance(op, Run) else type(op).__name__
        self.done[name] += 1
        if name in self.waits:
            await self.waits[name]()  # type: ignore[misc]
        if name in self.failing:
            raise BuildFault(f"{name} failed", code=3)
        self.made += 1
        path = self.snapshots.begin()
        below = inputs[0].row
        row = self.snapshots.commit(path, f"{PROVISIONAL}{self.made}", below.name if below else "", 1, 1, synced=False)
        self.written[row.number] = f"made by {name}"
        return row


class Bench:
    def __init__(self, folder: Path) -> None:
        self.layout = Layout(str(folder / "data"), str(folder / "run"))
        self.layout.create()
        self.db = Database(self.layout.database)
        self.open()
        self.snapshots.commit(self.snapshots.begin(), "chain", "", 1, 1)
        self.worker = Fake(self.snapshots)
        self.locks = KeyedLocks()

    def open(self) -> None:
        self.snapshots = Snapshots(self.layout, self.db)
        self.cache = BuildCache(self.db, self.snapshots)

    def solve(self, *vertices: Vertex, target: int = -1, **more: object) -> tuple[Outcome, Reporter]:
        graph = Graph(vertices=vertices, target=Target(root=0, config=ImageConfig(), platform=AMD64))
        reporter = Reporter(lambda progress: None)
        solver = Solver(graph, self.worker, self.cache, self.locks, reporter, **more)  # type: ignore[arg-type]
        return trio.run(solver.solve, target if target >= 0 else len(vertices) - 1), reporter


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.db.close()


def run(text: str, *inputs: int, no_cache: bool = False, line: int = 0) -> Vertex:
    return Vertex(op=Run(args=(text,), env=(), cwd="/"), inputs=inputs or (0,), name=f"RUN {text}", no_cache=no_cache, line=line)


def copy(*inputs: int, path: str = "/") -> Vertex:
    return Vertex(op=Copy(sources=(CopySource(input=1, path=path),), destination="/"), inputs=inputs, name="COPY")


FROM = Vertex(op=BASE, name="FROM base")
CONTEXT = Vertex(op=ContextSource(name="context"), name="load build context")


def test_a_step_is_executed_once_and_then_found(bench: Bench) -> None:
    first, reporter = bench.solve(FROM, run("a"), run("b", 1))
    assert (reporter.executed, reporter.cached) == (2, 0)
    again, reporter = bench.solve(FROM, run("a"), run("b", 1))
    assert bench.worker.done == {"a": 1, "b": 1}
    assert again.row is first.row
    assert (reporter.executed, reporter.cached) == (0, 2)


def test_what_nobody_needs_is_not_touched(bench: Bench) -> None:
    bench.solve(FROM, run("unused"), run("a"), target=2)
    assert bench.worker.done == {"a": 1}


def test_a_cached_result_needs_none_of_what_it_stands_on(bench: Bench) -> None:
    bench.solve(FROM, run("a"))
    bench.worker.opened.clear()
    bench.solve(FROM, run("a"))
    assert not bench.worker.opened


def test_the_cache_outlives_the_daemon(bench: Bench) -> None:
    bench.solve(FROM, run("a"))
    bench.open()
    bench.worker.snapshots = bench.snapshots
    bench.solve(FROM, run("a"))
    assert bench.worker.done == {"a": 1}


def test_another_context_is_copied_anew_and_the_old_one_found_again(bench: Bench) -> None:
    graph = (FROM, CONTEXT, copy(0, 1), run("after", 2))
    bench.solve(*graph)
    bench.worker.contents["context"] = "c2"
    bench.solve(*graph)
    assert bench.worker.done == {"Copy": 2, "after": 2}
    bench.worker.contents["context"] = "c1"
    bench.solve(*graph)
    assert bench.worker.done == {"Copy": 2, "after": 2}


def test_a_stage_made_anew_with_the_same_content_changes_nothing_after_it(bench: Bench) -> None:
    final = (FROM, run("make"), copy(0, 1), run("after", 2))
    bench.solve(*final)
    other = (FROM, Vertex(op=Run(args=("make",), env=("X=1",), cwd="/"), inputs=(0,), name="RUN make"), copy(0, 1), run("after", 2))
    bench.solve(*other)
    assert bench.worker.done == {"make": 2, "Copy": 1, "after": 1}


def test_no_cache_executes_and_leaves_its_result_for_the_next(bench: Bench) -> None:
    bench.solve(FROM, run("a"), run("b", 1))
    fresh, _ = bench.solve(FROM, run("a", no_cache=True), run("b", 1, no_cache=True))
    assert bench.worker.done == {"a": 2, "b": 2}
    again, _ = bench.solve(FROM, run("a"), run("b", 1))
    assert again.row is fresh.row
    assert bench.worker.done == {"a": 2, "b": 2}


def test_after_a_step_without_cache_the_rest_stands_on_its_result(bench: Bench) -> None:
    old, _ = bench.solve(FROM, run("a"), run("b", 1))
    new, _ = bench.solve(FROM, run("a", no_cache=True), run("b", 1))
    assert old.row is not None and new.row is not None
    assert old.row.parent != new.row.parent


def test_independent_stages_run_beside_each_other(bench: Bench) -> None:
    reached: list[str] = []
    both = trio.Event()

    async def meet(name: str) -> None:
        reached.append(name)
        if len(reached) == 2:
            both.set()
        await both.wait()

    bench.worker.waits = {"a": lambda: meet("a"), "b": lambda: meet("b")}
    stacked = Vertex(
        op=Copy(sources=(CopySource(input=1, path="/"), CopySource(input=2, path="/")), destination="/"), inputs=(0, 1, 2), name=""
    )
    bench.solve(FROM, run("a"), run("b"), stacked)
    assert sorted(reached) == ["a", "b"]


def test_a_failure_names_its_line_ends_the_rest_and_keeps_what_was_finished(bench: Bench) -> None:
    ended: list[str] = []

    async def long() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("long")

    bench.worker.waits["long"] = long
    bench.worker.failing.add("bad")
    stacked = Vertex(
        op=Copy(sources=(CopySource(input=1, path="/"), CopySource(input=2, path="/")), destination="/"), inputs=(0, 1, 3), name=""
    )
    with pytest.raises(BuildFault, match="bad failed") as caught:
        bench.solve(FROM, run("long"), run("good"), run("bad", 2, line=7), stacked)
    assert (caught.value.line, caught.value.code) == (7, 3)
    assert ended == ["long"]
    bench.worker.failing.clear()
    bench.solve(FROM, run("good"), run("bad", 1))
    assert bench.worker.done == {"long": 1, "good": 1, "bad": 2}


def test_two_builds_at_once_share_the_work(bench: Bench) -> None:
    async def slow() -> None:
        await trio.sleep(0.01)

    bench.worker.waits["a"] = slow
    outcomes: list[Outcome] = []

    async def one() -> None:
        graph = Graph(vertices=(FROM, run("a")), target=Target(root=0, config=ImageConfig(), platform=AMD64))
        outcomes.append(await Solver(graph, bench.worker, bench.cache, bench.locks, Reporter(lambda _: None)).solve(1))  # type: ignore[arg-type]

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)

    trio.run(both)
    assert bench.worker.done == {"a": 1}
    assert outcomes[0].row is outcomes[1].row


def test_scratch_and_links(bench: Bench) -> None:
    layer = Vertex(op=Copy(sources=(CopySource(input=1, path="/"),), destination="/", link=True), inputs=(SCRATCH, 0), name="COPY --link")
    outcome, _ = bench.solve(CONTEXT, layer, FROM, Vertex(op=Stack(), inputs=(2, 1), name="stack"))
    assert outcome.row is not None and outcome.row.parent == "chain"
    # On another base the layer itself is not made again.
    bench.solve(CONTEXT, layer, FROM, run("a", 2), Vertex(op=Stack(), inputs=(3, 1), name="stack"))
    assert bench.worker.done == {"Copy": 1, "Stack": 2, "a": 1}


def test_every_vertex_that_is_told_of_ends(bench: Bench) -> None:
    told: list[Progress] = []
    graph = Graph(vertices=(FROM, CONTEXT, copy(0, 1), run("a", 2)), target=Target(root=0, config=ImageConfig(), platform=AMD64))
    for _ in range(2):
        told.clear()
        solver = Solver(graph, bench.worker, bench.cache, bench.locks, Reporter(told.append))  # type: ignore[arg-type]
        trio.run(solver.solve, 3)
        last = {vertex.digest: vertex for progress in told for vertex in progress.vertexes}
        assert {vertex.name for vertex in last.values()} == {"FROM base", "load build context", "COPY", "RUN a"}
        assert all(vertex.completed and not vertex.error for vertex in last.values())
