"""What is done with what a build solved: its outputs, with the attestations beside them, and what the client is told of the images.

How an output is carried out is `exportfiles`'s business, what an attestation says `provenance`'s and `sbom`'s.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence

import msgspec

from builder.export import attest, exportfiles, provenance, sbom
from builder.export.attest import Attestation
from builder.export.images import Attach, Exported, Part, Report
from builder.export.packages.image import scan
from builder.graph import Graph, Target
from builder.progress import Reporter, stamp
from builder.sources.bases import credentials_for
from engine.aio.blocking import blocking
from engine.service.context import Context
from engine.spec.build import Options, Result
from engine.spec.digest import chain_ids, sha256
from engine.spec.docker.registry import Credentials
from engine.spec.image import Descriptor
from engine.spec.reference import Reference

Outputs = Callable[[int, AsyncIterator[bytes]], Awaitable[None]]
"""Sends the output of that index to the client."""


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What was solved for one platform. `resolved`: what sources turned out to be, by vertex; `began`: RFC 3339."""

    graph: Graph
    part: Part
    resolved: Mapping[int, str]
    began: str


def check_outputs(options: Options) -> None:
    """Refuse outputs that there are not before anything is done for them. Raises InvalidParameter, NotImplementedYet."""
    exportfiles.outputs(options)
    attest.wanted(options)


class Outcomes:
    """The outputs of one build."""

    def __init__(
        self, context: Context, options: Options, dockerfile: str, built: Sequence[Built], reporter: Reporter,
        auths: Mapping[str, Credentials], outputs: Outputs | None,
    ) -> None:  # fmt: skip
        self._context = context
        self._options = options
        self._dockerfile = dockerfile
        self._built = built
        self._reporter = reporter
        self._auths = auths
        self._outputs = outputs
        self._wanted = attest.wanted(options)
        self._statements: dict[str, list[Attestation]] = {}

    async def carry_out(self) -> Result:
        """All of them, in order. Raises InvalidParameter, NotImplementedYet, KnarrError, OSError."""
        epoch = self._built[0].graph.epoch
        result = Result()
        for number, output in enumerate(exportfiles.outputs(self._options, epoch)):
            if not output.vertex:
                continue
            if self._wanted:
                await self._attest()
            with self._reporter.vertex(output.vertex) as vertex:
                around = exportfiles.Surroundings(
                    report=self._report(vertex), send=self._sender(number), credentials=lambda name: credentials_for(self._auths, name),
                    attach=self._attach(output.names) if self._wanted and output.kind in ("image", "oci") else None, files=self._files,
                )  # fmt: skip
                exported = await exportfiles.carry_out(self._context, output, [one.part for one in self._built], around)
            if exported is not None and not result.image:
                result = self._told(exported, output)
        return result

    def _told(self, exported: Exported, output: exportfiles.Output) -> Result:
        members = exportfiles.metadata(exported, output.names, tagged=not output.digests)
        if self._wanted.provenance is not None and len(self._built) == 1:
            found = self._statements[self._key(self._built[0].part.target)]
            members["buildx.build.provenance"] = found[0].predicate
        metadata = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in members.items()}
        return Result(image=exported.image.id, digest=exported.digest, metadata=metadata)

    def _sender(self, number: int) -> exportfiles.Send | None:
        outputs = self._outputs
        if outputs is None:
            return None

        async def send(pieces: AsyncIterable[bytes]) -> None:
            await outputs(number, aiter(pieces))

        return send

    def _report(self, vertex: str) -> Report:
        began: dict[str, str] = {}

        def report(text: str, *, done: bool = False) -> None:
            self._reporter.status(vertex, text, 0, started=began.setdefault(text, stamp()), completed=done)

        return report

    # -- attestations

    def _key(self, target: Target) -> str:
        return f"{target.platform} {target.root}"

    async def _attest(self) -> None:
        for built in self._built:
            key = self._key(built.part.target)
            if key not in self._statements:
                self._statements[key] = await self._statement(built)

    async def _statement(self, built: Built) -> list[Attestation]:
        found: list[Attestation] = []
        graph, target = built.graph, built.part.target
        if self._wanted.provenance is not None:
            reproducible = graph.epoch is not None
            facts = provenance.Facts(
                options=self._options, graph=graph, dockerfile=self._dockerfile, platform=target.platform,
                builder=self._context.images.host, started=built.began, finished=stamp(), resolved=built.resolved,
                invocation="" if reproducible else sha256(f"{built.began} {id(self)}".encode()).partition(":")[2][:25],
            )  # fmt: skip
            settings = self._wanted.provenance
            found.append(Attestation(settings.predicate_type, provenance.predicate(facts, settings), settings.filename))
        if self._wanted.sbom:
            with self._reporter.vertex("listing the packages of the image"):
                layers = self._context.snapshots.lowers(_top(built.part))
                packages = await blocking("build", scan, layers)
            name = self._options.tags[0] if self._options.tags else "image"
            created = stamp() if graph.epoch is None else _moment(graph.epoch)
            found.append(Attestation(sbom.PREDICATE, sbom.document(packages, name, created), sbom.FILENAME))
        return found

    def _attach(self, names: Sequence[Reference]) -> Attach:
        async def attach(target: Target, image: Descriptor) -> Sequence[attest.Attached]:
            return [attest.attach(image, names, target.platform, self._statements[self._key(target)])]

        return attach

    def _files(self, part: Part) -> Mapping[str, bytes]:
        """Statements beside the files of an image."""
        if not self._wanted:
            return {}
        wanted = self._wanted.provenance
        found = self._statements[self._key(part.target)]
        subject = attest.subjects((), part.target.platform, sha256(b""))
        return {
            one.filename: attest.statement(one, subject)
            for one in found
            if not (wanted is not None and wanted.inline_only and one.type == wanted.predicate_type)
        }


def _top(part: Part) -> str:
    if part.added:
        return part.added[-1].snapshot.name
    chains = chain_ids(part.target.base.diff_ids) if part.target.base is not None else ()
    return chains[-1] if chains else ""


def _moment(epoch: int) -> str:
    return datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
