"""Preparing an instance to be exported to another cluster: a short-lived key and certificate, and a signed document."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

from ..api import LockMode
from ..certificates import make_self_signed
from ..errors import RefusedError
from ..feedback import Feedback
from ..model import Instance, Node
from ..names import name_problem
from ..records import PrepareResult
from ..remote.envelope import LIFE, MAX_DISKS
from ..remote.keys import RemoteKeys
from ..remote.prepared import ID_LENGTH, prepared_document
from ..remote.secret import read_secret
from .base import LockLevel, Operation, RunContext
from .export import open_source, size_problems
from .plugin_answers import failure_lines


class PrepareOperation(Operation[PrepareResult]):
    """Makes what another cluster's `receive` needs to know of one instance. The guest is not touched.

    Raises (from `run`):
        RefusedError: every reason found; nothing was made.
        LockTimeoutError: somebody else works on the instance.
        StorageError: the key cannot be written.
    """

    name = "prepare"

    def __init__(self, context: RunContext, instance: str) -> None:
        super().__init__(context)
        self._asked = instance
        self.instance: Instance
        self.source: Node
        self._sizes: list[int] = []
        self._secret = b""

    def describe(self) -> str:
        return f"preparation of {self.instance.name}"

    def check_arguments(self) -> None:
        if problem := name_problem("instance", self._asked):
            raise RefusedError(problem)

    def expand_names(self) -> None:
        self.instance, self.source = self.instance_and_node(self._asked)

    def home(self) -> Node:
        return self.source

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        if level is LockLevel.CLUSTER:
            return {self.cluster.name: LockMode.SHARED}
        return {self.instance.name: LockMode.SHARED} if level is LockLevel.INSTANCE else {}

    def check_prerequisites(self) -> None:
        problems: list[str] = []
        try:
            self._secret = read_secret(self.cluster)
        except RefusedError as error:
            problems += error.problems
        if self.source.offline:
            problems.append(f"node {self.source.name}, where {self.instance.name} lives, is marked offline")
        if not 0 < len(self.instance.disks) <= MAX_DISKS:
            problems.append(f"{self.instance.name} has {len(self.instance.disks)} disks: from 1 to {MAX_DISKS} can be exported")
        for disk in self.instance.disks:
            try:
                source = open_source(self.host.storage(disk.storage), disk)
                try:
                    problems += size_problems(disk, source)
                    self._sizes.append(source.size)
                finally:
                    source.close()
            except BaseException as error:  # a plugin may raise anything, SystemExit included
                problems += failure_lines(disk.label, error)
        if problems:
            raise RefusedError(problems)

    def execute(self, feedback: Feedback) -> PrepareResult:
        now = datetime.now(UTC)
        id_ = secrets.token_hex(ID_LENGTH)
        key, certificate = make_self_signed(self.cluster.name, "source", self.instance.name, now=now, until=now + LIFE)
        left_out: list[str] = []
        document = prepared_document(
            self._secret,
            id_=id_,
            cluster=self.cluster.name,
            instance=self.instance,
            sizes=self._sizes,
            certificate=certificate.decode("ascii"),
            now=now,
            left_out=left_out,
        )
        if left_out:
            feedback.warn(f"not in the document, since JSON cannot hold it: {', '.join(left_out)}")
        keys = RemoteKeys(self.cluster.state_dir)
        keys.sweep(now)
        place = keys.keep(id_, key + certificate, now + LIFE)
        return PrepareResult(
            run_id=self.context.run_id,
            instance=self.instance.name,
            node=self.source.name,
            document=document,
            prepared=id_,
            key=str(place),
            expires=now + LIFE,
            warnings=tuple(feedback.warnings),
        )
