"""The exports of one node, as objects below a prefix of a bucket."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from diskhaul.api import ExportStore, RetryingExportWriter
from diskhaul.errors import StorageError
from diskhaul.formats.export_id import is_export_id, parse_partial, partial_name
from diskhaul.names import name_problem, printable

from ..beneath import is_single
from ..checked_names import check_export_id, check_instance_name
from .bucket import Bucket, Found
from .credentials import Credentials
from .faults import GivenUpError, RequestError, patiently
from .reader import ObjectReader
from .settings import Place, Settings
from .stored_file import Means, ObjectFile
from .uploads import Upload, Uploads

MANIFEST = "manifest.json"
_BEGUN = "begun"
_UPLOAD_NOTE = "upload-"
_NOTE_LIMIT = 4096  # bytes; ours have a few hundred
_PROBE = ".diskhaul-probe-"
_LISTS_NO_UPLOADS = frozenset({403, 405, 501})
_ABORT_ROUNDS = 3  # S3: a part that was under way may bring an upload back


@dataclass(slots=True)
class _Objects:
    """What there is of one export."""

    files: list[Found] = field(default_factory=list)
    notes: list[Found] = field(default_factory=list)
    published: bool = False
    begun: bool = False


class ObjectStore(ExportStore):
    """The exports below one prefix. Thread-safe.

    Args:
        credentials: whose they are, for messages.
    """

    def __init__(self, place: Place, settings: Settings, bucket: Bucket, uploads: Uploads, credentials: Credentials) -> None:
        self._place, self._settings = place, settings
        self._bucket, self._uploads, self._credentials = bucket, uploads, credentials

    @property
    def identity(self) -> str:
        return self._place.identity

    def check(self, instance: str, /, *, for_writing: bool) -> Iterator[str]:
        """With `for_writing`, a small object is put and deleted again, and an upload is begun and aborted: nothing else tells
        whether that is allowed, and it is asked for in two ways.
        """
        if problem := name_problem("instance", instance):
            yield problem
            return
        try:
            self._survey(instance, retry_s=0)
        except RequestError as fault:
            yield self._explained(fault, "list objects")
            return
        if for_writing:
            yield from self._write_problems()

    def _write_problems(self) -> Iterator[str]:
        key = self._place.key(f"{_PROBE}{uuid.uuid4().hex}")
        problems: list[str] = []
        try:
            problems.extend(self._probe_problems(key))
        finally:
            try:
                self._bucket.delete([key], retry_s=0)
            except RequestError as fault:
                problems = problems or [self._explained(fault, "delete an object")]
        yield from problems

    def _probe_problems(self, key: str) -> Iterator[str]:
        action = "put an object"
        try:
            self._bucket.put_new(key, b"1", retry_s=0)
            action = "put an object on a condition"
            try:
                self._bucket.put_new(key, b"2", retry_s=0)
                yield (
                    f"{self._place.endpoint}: replaces objects in spite of If-None-Match: two exports could replace each other: "
                    "use a server that has conditional writes"
                )
            except RequestError as fault:
                if not fault.exists:
                    raise
            action = "begin an upload"
            upload = self._uploads.begin(key, retry_s=0)
            action = "abort an upload"
            self._uploads.abort(upload, retry_s=0)
        except RequestError as fault:
            yield self._explained(fault, action)

    def free_bytes(self) -> int | None:
        return None

    # --- listing --------------------------------------------------------------------------------------------------------

    def instances(self) -> Sequence[str]:
        try:
            found = self._bucket.directories(self._place.prefix)
        except RequestError as fault:
            raise self.failed(fault, "list instances", self._place.location()) from fault
        return [name for name in found if not name_problem("instance", name)]

    def exports(self, instance: str, /) -> Sequence[str]:
        return sorted(export_id for export_id, objects in self._surveyed(instance).items() if objects.published)

    def partials(self, instance: str, /) -> Sequence[str]:
        return sorted(export_id for export_id, objects in self._surveyed(instance).items() if not objects.published)

    def _surveyed(self, instance: str) -> dict[str, _Objects]:
        check_instance_name(instance)
        try:
            return self._survey(instance)
        except RequestError as fault:
            raise self.failed(fault, "list exports", self._place.location(instance)) from fault

    def _survey(self, instance: str, retry_s: float | None = None) -> dict[str, _Objects]:
        """What there is of each export, by one listing."""
        prefix = self._place.key(instance)
        found: dict[str, _Objects] = {}
        for each in self._bucket.below(prefix, retry_s):
            directory, slash, name = each.key[len(prefix) + 1 :].partition("/")
            if not slash:
                continue
            if is_export_id(directory):
                objects = found.setdefault(directory, _Objects())
                objects.files.append(each)
                objects.published = objects.published or name == MANIFEST
            elif export_id := parse_partial(directory):
                objects = found.setdefault(export_id, _Objects())
                if name == _BEGUN:
                    objects.begun = True
                else:
                    objects.notes.append(each)
        return found

    # --- making, reading, removing ----------------------------------------------------------------------------------------

    def begin(self, instance: str, export_id: str, /) -> ObjectWriter:
        check_export_id(export_id)
        check_instance_name(instance)
        return ObjectWriter(self, instance, export_id)

    def open(self, instance: str, export_id: str, /) -> ObjectReader:
        check_export_id(export_id)
        check_instance_name(instance)
        location, prefix = self._place.location(instance, export_id), self._place.key(instance, export_id)
        try:
            self._bucket.head(f"{prefix}/{MANIFEST}")
        except RequestError as fault:
            if fault.missing:
                raise StorageError(f"{location}: does not exist", path=location) from fault
            raise self.failed(fault, "open it", location) from fault
        return ObjectReader(self._bucket, location, prefix, self.failed, lambda: None)

    def remove(self, instance: str, export_id: str, /) -> None:
        check_export_id(export_id)
        check_instance_name(instance)
        try:
            self._bucket.delete([self._place.key(instance, export_id, MANIFEST)])  # from here on it is not listed
            self.drop(instance, export_id)
        except RequestError as fault:
            raise self.failed(fault, "remove it completely", self._place.location(instance, export_id)) from fault

    def remove_partial(self, instance: str, export_id: str, /) -> None:
        check_export_id(export_id)
        check_instance_name(instance)
        try:
            objects = self._survey(instance).get(export_id, _Objects())
            if objects.begun:  # whoever is about to publish it has to see that it is taken away
                self._bucket.put(self._place.key(instance, partial_name(export_id), _BEGUN), b"taken away")
                objects = self._survey(instance).get(export_id, _Objects())
            if objects.published:
                self.tidy(instance, export_id)  # the export stays
            else:
                self.drop(instance, export_id)
        except RequestError as fault:
            raise self.failed(fault, "remove it completely", self._place.location(instance, export_id)) from fault

    def drop(self, instance: str, export_id: str) -> None:
        """Abort the uploads of an export and delete its objects, what says that it was begun at last.

        Raises:
            RequestError: something of it is still there.
        """
        prefix = self._place.key(instance, export_id) + "/"
        for upload in self._noted(instance, export_id):
            self._uploads.abort(upload)
        for _ in range(_ABORT_ROUNDS):
            left = self._listed(prefix)
            for upload in left:
                self._uploads.abort(upload)
            if not left:
                break
        else:
            raise RequestError(200, "", f"uploads below {prefix} come back when they are aborted")
        self._bucket.delete([found.key for found in self._bucket.below(prefix.rstrip("/"))])
        self.forget(instance, export_id)

    def _noted(self, instance: str, export_id: str) -> Iterator[Upload]:
        prefix = self._place.key(instance, export_id) + "/"
        for note in self._bucket.below(self._place.key(instance, partial_name(export_id))):
            if not note.key.rsplit("/", 1)[-1].startswith(_UPLOAD_NOTE) or note.size > _NOTE_LIMIT:
                continue
            try:
                content = json.loads(self._bucket.get(note.key))
                upload = Upload(str(content["key"]), str(content["upload_id"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # not ours; its uploads are listed all the same
            except RequestError as fault:
                if fault.missing:
                    continue
                raise
            if upload.key.startswith(prefix):
                yield upload

    def _listed(self, prefix: str) -> list[Upload]:
        try:
            return list(self._uploads.below(prefix))
        except RequestError as fault:
            if fault.status in _LISTS_NO_UPLOADS:
                return []  # the notes have to do
            raise

    def note(self, instance: str, export_id: str, upload: Upload) -> None:
        """Remember an upload beside the export, so that it can be aborted by whoever removes that."""
        key = self._place.key(instance, partial_name(export_id), f"{_UPLOAD_NOTE}{uuid.uuid4().hex}")
        self._bucket.put(key, json.dumps({"key": upload.key, "upload_id": upload.upload_id}).encode())

    def tidy(self, instance: str, export_id: str) -> None:
        """Leave nothing but a published export: no upload that was begun twice since an answer was lost, and no notes."""
        for upload in self._listed(self._place.key(instance, export_id) + "/"):
            self._uploads.abort(upload)
        self.forget(instance, export_id)

    def forget(self, instance: str, export_id: str) -> None:
        """Delete what was kept beside an export while it was made."""
        prefix = self._place.key(instance, partial_name(export_id))
        begun = f"{prefix}/{_BEGUN}"
        keys = [found.key for found in self._bucket.below(prefix)]
        self._bucket.delete([*(key for key in keys if key != begun), *(key for key in keys if key == begun)])

    # --- for writers ------------------------------------------------------------------------------------------------------

    @property
    def place(self) -> Place:
        return self._place

    @property
    def bucket(self) -> Bucket:
        return self._bucket

    def means(self, instance: str, export_id: str) -> Means:
        """What files of an export are made with."""
        return Means(
            place=self._place,
            bucket=self._bucket,
            uploads=self._uploads,
            settings=self._settings,
            note=lambda upload: self.note(instance, export_id, upload),
            failed=self.failed,
        )

    def patiently(self, attempt: Callable[[], object], given_up: threading.Event) -> None:
        patiently(attempt, self._settings.retry_s, given_up)

    def quiet_s(self) -> float:
        """How long a request that nobody wants any more may still be under way."""
        return self._settings.connect_timeout_s + self._settings.silence_s

    def _explained(self, fault: RequestError, action: str) -> str:
        return fault.explained(self._place, self._credentials, action)

    def failed(self, fault: RequestError, action: str, path: str) -> StorageError:
        return fault.as_error(self._place, self._credentials, action, path)


class ObjectWriter(RetryingExportWriter):
    """An export that is being made. `create` may be called by several threads."""

    def __init__(self, store: ObjectStore, instance: str, export_id: str) -> None:
        self._store, self._bucket = store, store.bucket
        self._named = (instance, export_id)
        self._location = store.place.location(instance, export_id)
        self._prefix = store.place.key(instance, export_id)
        self._begun_key = store.place.key(instance, partial_name(export_id), _BEGUN)
        self._token = uuid.uuid4().hex.encode()
        self._files: dict[str, ObjectFile] = {}
        self._lock = threading.Lock()
        self._given_up = threading.Event()
        self._open = True
        self._doubtful: bytes | None = None  # the manifest that was put, while nobody knows whether it arrived
        self._unanswered = False  # a put of the manifest was sent that the store may carry out at any time
        try:
            self._begin()
        except RequestError as fault:
            raise store.failed(fault, "begin an export", self._location) from fault

    def _begin(self) -> None:
        try:
            self._bucket.put_new(self._begun_key, self._token)
        except RequestError as fault:
            if not fault.exists:
                raise
            text = f"{self._location}: has been begun already: remove what an earlier run left"
            raise StorageError(text, path=self._location) from fault
        # A maker deletes what says that it has begun only after it has published: so what is seen now is all there is.
        there = {found.key for found in self._bucket.below(self._prefix)}
        if there:
            self._bucket.delete([self._begun_key])
            left = "" if f"{self._prefix}/{MANIFEST}" in there else ", unpublished: remove what an earlier run left"
            raise StorageError(f"{self._location}: exists already{left}", path=self._location)

    @property
    def location(self) -> str:
        return self._location

    def create(self, name: str, /) -> ObjectFile:
        path = f"{self._location}/{name}"
        if not is_single(name) or name == MANIFEST:
            raise StorageError(f"{printable(path)}: {printable(name)} cannot be the name of an export's file", path=path)
        with self._lock:
            self._check_open()
            if name in self._files:
                raise StorageError(f"{path}: exists already", path=path)
            file = ObjectFile(self._store.means(*self._named), name, f"{self._prefix}/{name}", path)
            self._files[name] = file
            return file

    def reader(self) -> ObjectReader:
        return ObjectReader(self._bucket, self._location, self._prefix, self._store.failed, self._check_open)

    def publish(self, manifest: bytes, /) -> None:
        self.publish_while(manifest, lambda: None)

    def publish_while(self, manifest: bytes, check: Callable[[], object], /) -> None:
        with self._lock:
            self._check_open()
            unfinished = sorted(name for name, file in self._files.items() if not file.durable)
            if unfinished:
                raise StorageError(f"{self.location}: not published: {', '.join(unfinished)} not finished", path=self.location)
            try:
                self._put_manifest(manifest, check)
                self._look_again(manifest)
            except RequestError as fault:
                raise self._store.failed(fault, "publish it", self._location) from fault
            except GivenUpError as error:
                raise StorageError(f"{self._location}: was given up", path=self._location) from error
            self._doubtful = None
            self._open = False
            try:
                self._store.tidy(*self._named)
            except RequestError:
                pass  # it is published; what is left is not listed, and goes with the export

    def _put_manifest(self, manifest: bytes, check: Callable[[], object]) -> None:
        def attempt() -> None:
            self._check_whole(retry_s=0)
            check()
            self._doubtful = manifest
            try:
                self._bucket.put_new(f"{self._prefix}/{MANIFEST}", manifest, retry_s=0)
            except RequestError as fault:
                self._unanswered = self._unanswered or fault.unanswered
                raise

        try:
            self._store.patiently(attempt, self._given_up)
        except RequestError as fault:
            if fault.exists:
                self._doubtful = None
                text = f"{self._location}: not published: somebody else has published it"
                raise StorageError(text, path=self._location) from fault
            raise

    def _look_again(self, manifest: bytes) -> None:
        """Take the manifest back when somebody has taken the export away while it was put.

        Whoever takes one away first replaces what says that it was begun, and then looks for a manifest: so one of both sees what
        the other has done.
        """
        try:
            self._check_whole()
            if self._given_up.is_set():
                raise GivenUpError
        except (StorageError, GivenUpError):
            self._take_back(manifest)
            raise

    def _check_whole(self, retry_s: float | None = None) -> None:
        """That nobody has taken the export away, and that its objects are as large as what was sent."""
        ours = self._holds(self._begun_key, self._token, retry_s)
        found = {each.key: each.size for each in self._bucket.below(self._prefix, retry_s)}
        found.pop(f"{self._prefix}/{MANIFEST}", None)  # whose it is says the put
        if not ours or found != {f"{self._prefix}/{name}": file.size for name, file in self._files.items()}:
            what = "somebody has removed or changed what was sent"
            raise StorageError(f"{self._location}: not published: {what}", path=self._location)

    def _take_back(self, manifest: bytes) -> None:
        if self._holds(f"{self._prefix}/{MANIFEST}", manifest):
            self._bucket.delete([f"{self._prefix}/{MANIFEST}"])

    def abort(self) -> None:
        """As `ExportWriter` says.

        Raises:
            StorageError: something is left, or may come yet: the store has never answered whether it has taken the manifest.
        """
        self._given_up.set()  # before waiting for the lock: a `publish` that hangs in there must not succeed afterwards
        with self._lock:
            if not self._open:
                return  # published, or aborted before
            self._open = False
            for file in self._files.values():
                file.close()
            for file in self._files.values():
                file.wait_until_quiet(self._store.quiet_s())
            try:
                if self._doubtful is not None:
                    self._take_back(self._doubtful)
                ours = self._holds(self._begun_key, self._token)
            except RequestError as fault:
                raise self._store.failed(fault, "remove it completely", self._location) from fault
            if ours:  # otherwise somebody has removed what was begun: what is there now is another's, or nothing
                self._store.remove_partial(*self._named)  # not what somebody else has published
            if self._unanswered:
                what = "the store has not answered whether it has taken its manifest, and may take it yet"
                text = f"{self._location}: was removed, but {what}: 'diskhaul recover' looks again"
                raise StorageError(text, path=self._location)

    def _holds(self, key: str, content: bytes, retry_s: float | None = None) -> bool:
        try:
            return self._bucket.get(key, retry_s=retry_s) == content
        except RequestError as fault:
            if fault.missing:
                return False
            raise

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError(f"{self.location}: is no longer being written", path=self.location)
