"""COPY, ADD and WORKDIR: instructions that change files without a process. Pure."""

from __future__ import annotations

from builder.graph import SCRATCH, CopySource, GitSource, HttpSource, MakeFolder, Stack
from builder.graph import Copy as CopyOp
from builder.language import chown, giturl, modes
from builder.language.addresses import filename, is_git, is_web
from builder.language.instructions import Add, Copy, Workdir
from builder.lowering.evaluate import Fault, below, destination
from builder.lowering.stages import Needed, check_dependency
from builder.lowering.state import Inputs, Lowering, State, document_source
from engine.spec.digest import is_digest

_PIVOT = "/./"


def workdir(lowering: Lowering, state: State, needed: Needed, instruction: Workdir) -> None:
    """WORKDIR. `/` makes no layer. Raises SubstitutionError."""
    path = below(state.defaults.working_dir, lowering.word(state, instruction.path))
    state.change(working_dir=path)
    vertex = None
    if path != "/":
        name = lowering.named(state, lowering.evaluator.shown(instruction.text, state.env), trigger=needed.trigger)
        vertex = state.root = lowering.vertex(state, needed, MakeFolder(path=path, user=state.defaults.user), (state.root,), name)
    lowering.commit(state, needed, f"WORKDIR {path}", vertex)


def copy(lowering: Lowering, state: State, needed: Needed, instruction: Copy) -> None:
    """COPY and ADD. Raises InvalidParameter, SubstitutionError."""
    _Copying(lowering, state, needed, instruction).lower()


class _Copying:
    """One COPY or ADD."""

    def __init__(self, lowering: Lowering, state: State, needed: Needed, instruction: Copy) -> None:
        self.lowering = lowering
        self.state = state
        self.needed = needed
        self.instruction = instruction
        self.add = instruction if isinstance(instruction, Add) else None
        self.chown = self.word(instruction.chown)
        self.chmod = self.word(instruction.chmod)
        self.checksum = self.word(self.add.checksum) if self.add is not None else ""
        # The names of owners are those of what is below, which a layer of its own does not see.
        self.link = instruction.link and not chown.named(self.chown)
        self.inputs = Inputs(SCRATCH if self.link else state.root)

    def word(self, text: str) -> str:
        return self.lowering.word(self.state, text)

    def lower(self) -> None:
        instruction, state = self.instruction, self.state
        modes.parse(self.chmod)
        words = [self.word(source) for source in instruction.sources]
        target = self.word(instruction.destination)
        if self.checksum and len(words) != 1:
            raise Fault("checksum can't be specified for multiple sources")
        if self.checksum and not is_web(words[0]) and not is_git(words[0]):
            raise Fault("checksum requires HTTP(S) or Git sources", word=self.checksum)
        sources = [self.source(word) for word in words]
        for document in instruction.heredocs:
            content = self.lowering.evaluator.document(document.content, state.env) if document.expand else document.content
            sources.append(document_source(document.name, content))
        op = CopyOp(
            sources=tuple(sources),
            destination=destination(state.defaults.working_dir, target),
            chown=self.chown,
            chmod=self.chmod,
            exclude=tuple(self.word(pattern) for pattern in instruction.exclude),
            parents=instruction.parents,
            link=self.link,
        )
        vertex = self.vertices(op)
        flags = [
            *(["--parents"] if instruction.parents else ()),
            *([f"--chown={self.chown}"] if self.chown else ()),
            *([f"--chmod={self.chmod}"] if self.chmod else ()),
        ]
        documents = [f"<<{document.name}" for document in instruction.heredocs]
        keyword = "COPY" if self.add is None else "ADD"
        self.lowering.commit(state, self.needed, " ".join([keyword, *flags, *words, *documents, target]) + " # buildkit", vertex)

    def vertices(self, op: CopyOp) -> int:
        """The vertex of the layer; of what it is on, too, when it was made on nothing."""
        lowering, state, needed = self.lowering, self.state, self.needed
        shown = lowering.evaluator.shown(self.instruction.text, state.env)
        name = lowering.named(state, shown, trigger=needed.trigger)
        vertex = lowering.vertex(state, needed, op, self.inputs.all, name)
        if op.link and state.root != SCRATCH:
            place = name[: len(name) - len(shown)]
            vertex = lowering.vertex(state, needed, Stack(), (state.root, vertex), f"{place}LINK {shown}")
        state.root = vertex
        return vertex

    def source(self, word: str) -> CopySource:
        """Where a word says that files are."""
        if is_git(word):
            return self.repository(word)
        if is_web(word):
            return self.download(word)
        path, pivot, rest = word.partition(_PIVOT) if self.instruction.parents else (word, "", "")
        path = below("/", path)
        if pivot:  # what stands before it is not kept
            path = path.rstrip("/") + _PIVOT + below("/", rest).lstrip("/")
        unpack = self.add is not None and self.add.unpack is not False
        return CopySource(input=self.inputs.place(self.tree()), path=path, unpack=unpack)

    def tree(self) -> int:
        """The vertex that words which are no addresses are paths in."""
        if not self.instruction.from_:
            return self.lowering.vertices.context()
        node = self.needed.sources[0]
        assert node is not None
        shown = self.state.node.shown
        message = f'cannot copy from stage "{self.instruction.from_}", it needs to be defined before current stage "{shown}"'
        check_dependency(self.state.node, node, message)
        return self.lowering.states[node.number].source

    def repository(self, url: str) -> CopySource:
        if self.add is None:
            raise Fault("source can't be a git ref for COPY", word=url)
        said = giturl.parse(url)
        keep = self.add.keep_git_dir
        if None not in (keep, said.keep_git_dir) and keep != said.keep_git_dir:
            raise Fault("inconsistent keep-git-dir configuration", word=url)
        if self.checksum and said.checksum and self.checksum != said.checksum:
            raise Fault(f'checksum mismatch "{self.checksum}" != "{said.checksum}"', word=self.checksum)
        op = GitSource(url=url, keep_git_dir=bool(keep or said.keep_git_dir), checksum=self.checksum or said.checksum)
        return CopySource(input=self.inputs.place(self.fetched(op, url)), path="/", literal=True)

    def download(self, url: str) -> CopySource:
        if self.add is None:
            raise Fault("source can't be a URL for COPY", word=url)
        if self.checksum and not is_digest(self.checksum):
            raise Fault("invalid checksum digest format", word=self.checksum)
        op = HttpSource(url=url, filename=filename(url), checksum=self.checksum)
        path = below("/", op.filename)
        return CopySource(input=self.inputs.place(self.fetched(op, url)), path=path, unpack=bool(self.add.unpack), literal=True)

    def fetched(self, op: GitSource | HttpSource, url: str) -> int:
        return self.lowering.vertices.add(
            op, (), url, line=self.needed.location.line, stage=self.state.node.index, no_cache=self.state.no_cache
        )


def whole_tree(vertex: int) -> tuple[CopyOp, tuple[int, ...]]:
    """What makes a root file system of a folder of sources, and its inputs: for a stage from a named context."""
    return CopyOp(sources=(CopySource(input=1, path="/", literal=True),), destination="/"), (SCRATCH, vertex)
