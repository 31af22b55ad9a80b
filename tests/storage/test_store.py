"""The store's protocol, the same on every kind of storage (see `conftest`); torn, lost and altered pieces."""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.facts import metrics_of

from deftx.config import TextSettings
from deftx.errors import StoreError
from deftx.sources.files import FileSource
from deftx.sources.published import HubFolder
from deftx.stages.checkpoint import Checkpoint
from deftx.stages.files import BLOCKS
from deftx.stages.manifest import MANIFEST, Manifest
from deftx.stages.settings import TextStageSettings
from deftx.stages.stage import Stage
from deftx.stages.store import Attempt, Store
from orchestrator.record.sweep import sweeps_in

FILES = {BLOCKS: b"", "model/weights.bin": b"w" * 1000, "model/config.json": b"{}", "scores.json": b"[1]"}


def make_stage(language: str = "ace") -> Stage:
    source = FileSource(sha256="0" * 64, url="ace.txt")
    backbone = HubFolder(repo="tiny", commit="1" * 40)
    return Stage(
        "text", TextStageSettings(language=language, source=source, text=TextSettings(), backbone=backbone, seed=0)
    )


STAGE = make_stage()


@pytest.fixture
def remote(tmp_path: Path) -> Store:
    return Store(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache", cache_bytes=2500)


def fill(attempt: Attempt, files: dict[str, bytes]) -> Attempt:
    for name, content in files.items():
        (attempt.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (attempt.folder / name).write_bytes(content)
    return attempt


def publish(store: Store, stage: Stage = STAGE, files: dict[str, bytes] = FILES, **facts: object) -> Manifest:
    return fill(store.attempt(stage.address), files).publish(
        stage, **{"metrics": metrics_of(stage), "seconds": 1.0, **facts}
    )


def overwrite(store: Store, name: str, content: bytes) -> None:
    """Alter a published file behind the store's back."""
    manifest = store.manifest(STAGE.address)
    assert manifest is not None
    store.fs.pipe_file(store.path("stages", STAGE.address, manifest.attempt, name), content)


def again(store: Store) -> Store:
    """The store as another process opens it."""
    return Store(store.url, cache=store._cache.folder, cache_bytes=store._cache.most)


def test_what_is_published_is_read_back(store: Store) -> None:
    assert store.manifest(STAGE.address) is None
    assert (store.has(STAGE.address), store.intact(STAGE.address), list(store.addresses())) == (False, False, [])
    manifest = publish(store, details={"why": "because"})
    other = again(store)
    assert other.manifest(STAGE.address) == manifest
    assert (other.has(STAGE.address), other.intact(STAGE.address)) == (True, True)
    assert list(other.addresses()) == [STAGE.address]
    assert {name: entry.size for name, entry in manifest.files.items()} == {n: len(c) for n, c in FILES.items()}
    assert {name: other.fetch(STAGE.address, name).read_bytes() for name in FILES} == FILES
    folder = other.fetch_folder(STAGE.address, "model")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "weights.bin": b"w" * 1000,
        "config.json": b"{}",
    }
    assert manifest.identity == STAGE.identity()


def test_a_stage_without_a_manifest_does_not_exist_for_a_reader(store: Store) -> None:
    fill(store.attempt(STAGE.address), FILES)  # a process died here
    assert not store.has(STAGE.address)
    assert not store.intact(STAGE.address)
    assert list(store.addresses()) == []
    for read in (store.fetch, store.fetch_folder, store.url_of):
        with pytest.raises(StoreError, match=f"{STAGE.address}: not published"):
            read(STAGE.address, "model")
    publish(store)
    assert store.intact(STAGE.address)


def test_an_abandoned_attempt_leaves_no_files(store: Store) -> None:
    attempt = fill(store.attempt(STAGE.address), FILES)
    attempt.abandon()
    assert not attempt.folder.exists()


def test_what_a_manifest_names_is_on_the_disk_before_it_and_then_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, events = Store(str(tmp_path)), list[str]()
    link, sync = os.link, os.fsync

    def synced(handle: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{handle}").removeprefix(f"{tmp_path}/stages/{STAGE.address}"))
        sync(handle)

    def linked(source: str, target: str) -> None:
        events.append("linked")
        link(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    manifest = publish(store)
    at = events.index("linked")
    names = ["", "/model", *(f"/{name}" for name in FILES)]
    assert sorted(events[: at - 1]) == sorted(["", *(f"/{manifest.attempt}{name}" for name in names)])
    assert events[at - 1].startswith("/manifest.json.")
    assert events[at + 1] == ""  # its name, in the folder


def test_the_first_writer_wins_and_the_others_are_told(store: Store) -> None:
    late = fill(store.attempt(STAGE.address), {**FILES, "scores.json": b"[2]"})
    first = publish(store)
    assert late.publish(STAGE, metrics=metrics_of(STAGE, train_tokens=9.0), seconds=2.0) == first
    assert again(store).fetch(STAGE.address, "scores.json").read_bytes() == b"[1]"
    assert again(store).intact(STAGE.address)


def test_of_many_writers_at_once_one_wins_whole(tmp_path: Path) -> None:
    store, found = Store(str(tmp_path)), []

    def write(number: int) -> None:
        found.append(publish(Store(str(tmp_path)), files={**FILES, "scores.json": str(number).encode()}))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({manifest.attempt for manifest in found}) == 1
    assert store.intact(STAGE.address)


@pytest.mark.parametrize("content", [b"", b"w" * 999 + b"x", b"w" * 999])
def test_a_file_that_does_not_match_its_manifest_is_named(store: Store, content: bytes) -> None:
    publish(store)
    overwrite(store, "model/weights.bin", content)
    other = again(store)
    with pytest.raises(StoreError, match=r"model/weights.bin: does not match its manifest"):
        other.fetch(STAGE.address, "model/weights.bin")
    with pytest.raises(StoreError, match=r"model/weights.bin"):
        other.fetch_folder(STAGE.address, "model")
    assert not other.intact(STAGE.address)
    assert not other.has(STAGE.address)
    assert other.fetch(STAGE.address, "scores.json").read_bytes() == b"[1]"


def test_a_file_that_is_gone_is_named(store: Store) -> None:
    manifest = publish(store)
    store.remove("stages", STAGE.address, manifest.attempt, "scores.json")
    other = again(store)
    with pytest.raises(StoreError, match=r"scores.json"):
        other.fetch(STAGE.address, "scores.json")
    assert not other.has(STAGE.address)
    assert not other.intact(STAGE.address)


def test_a_file_that_is_gone_is_missed_where_this_node_still_has_it(store: Store) -> None:
    manifest = publish(store)
    assert store.intact(STAGE.address)
    store.remove("stages", STAGE.address, manifest.attempt, "scores.json")
    assert not store.has(STAGE.address)
    assert not store.intact(STAGE.address)


def test_a_manifest_is_read_once_whatever_the_number_of_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    other, read = again(store), list[str]()
    monkeypatch.setattr(other, "read", lambda *parts: read.append(parts[-1]) or Store.read(other, *parts))
    for ask in (other.has, other.intact, lambda address: other.fetch_folder(address, "model")):
        ask(STAGE.address)
        assert read == [MANIFEST]
        read.clear()


def test_a_discarded_stage_can_be_made_again(store: Store) -> None:
    publish(store)
    store.discard(STAGE.address)
    assert not store.has(STAGE.address)
    publish(store, files={**FILES, "scores.json": b"[3]"})
    assert again(store).fetch(STAGE.address, "scores.json").read_bytes() == b"[3]"


def broken(store: Store, caplog: pytest.LogCaptureFixture, words: str) -> None:
    """The manifest of STAGE counts as absent, with one warning; whoever needs a file is told; it is made again."""
    caplog.clear()
    assert store.manifest(STAGE.address) is None
    assert (store.has(STAGE.address), store.intact(STAGE.address)) == (False, False)
    assert [words in message for message in caplog.messages] == [True]
    for read in (store.fetch, store.fetch_folder, store.url_of):
        with pytest.raises(StoreError, match=re.escape(f"{STAGE.address}/manifest.json: {words}")):
            read(STAGE.address, "model")
    measured = metrics_of(STAGE, train_tokens=9.0)
    assert publish(store, metrics=measured).metrics == measured
    assert again(store).intact(STAGE.address)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"address": "x"}', b'{"future": 1}', b"\xff"])
def test_a_torn_manifest_counts_as_absent_and_is_made_again(
    store: Store, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    publish(store)
    store.write(content, "stages", STAGE.address, MANIFEST)
    broken(store, caplog, "not a manifest")


@pytest.mark.parametrize("kept", [(), ("address",), ("identity",)])
def test_a_manifest_is_believed_only_in_its_own_place(
    store: Store, caplog: pytest.LogCaptureFixture, kept: tuple[str, ...]
) -> None:
    """That of another stage, with the address or the identity of this one too."""
    mine, other = (json.loads(publish(store, stage).model_dump_json()) for stage in (STAGE, make_stage("ban")))
    mixed = {**other, **{name: mine[name] for name in kept}}
    store.write(json.dumps(mixed).encode(), "stages", STAGE.address, MANIFEST)
    broken(store, caplog, "the manifest of another stage (ban · text)")


@pytest.mark.parametrize("kind", ["txet", "check", ""])
def test_a_manifest_that_names_another_kind_than_its_identity_is_not_believed(
    store: Store, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    content = {**json.loads(publish(store).model_dump_json()), "kind": kind}
    store.write(json.dumps(content).encode(), "stages", STAGE.address, MANIFEST)
    broken(store, caplog, f"calls a text stage '{kind}'")


def test_a_manifest_whose_seconds_are_no_number_is_not_believed(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    content = publish(store).model_dump_json().replace('"seconds":1.0', '"seconds":NaN')
    store.write(content.encode(), "stages", STAGE.address, MANIFEST)
    broken(store, caplog, "not a manifest (Input should be a finite number)")


def test_a_manifest_of_a_newer_version_is_not_taken_for_a_broken_one(store: Store) -> None:
    manifest = publish(store)
    content = json.dumps({**json.loads(manifest.model_dump_json()), "energy": 1.5}).encode()
    store.write(content, "stages", STAGE.address, MANIFEST)
    words = r"manifest.json: was written by a newer version of deftx-sweeps \(this one does not know energy\)"
    for read in (store.manifest, store.has, store.intact):
        with pytest.raises(StoreError, match=words):
            read(STAGE.address)
    with pytest.raises(StoreError, match=words):
        publish(store)
    assert store.read("stages", STAGE.address, MANIFEST) == content, "it is left as it is"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_metric_that_is_no_number_counts_as_not_made(
    store: Store, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    content = publish(store).model_dump_json().replace("90.0", value).encode()
    store.write(content, "stages", STAGE.address, MANIFEST)
    assert not store.has(STAGE.address)
    assert not store.intact(STAGE.address)
    assert [": lines: Input should be a finite number" in message for message in caplog.messages] == [True]


def test_a_manifest_that_lacks_a_file_of_its_kind_counts_as_not_made(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(publish(store).model_dump_json())
    del content["files"][BLOCKS]
    store.write(json.dumps(content).encode(), "stages", STAGE.address, MANIFEST)
    assert (store.has(STAGE.address), store.intact(STAGE.address)) == (False, False)
    words = f"manifest of ace · text ({STAGE.address}): has no file {BLOCKS}; the command that made the stage makes it"
    assert caplog.messages == [f"{words} again"]


@pytest.mark.parametrize("parts", [("..", "x"), ("a/../../x",), ("/etc/passwd",), ("stages", "../../x")])
def test_no_path_leads_out_of_the_store(store: Store, parts: tuple[str, ...]) -> None:
    for method in (store.read, store.names, store.remove):
        with pytest.raises(StoreError, match="must stay inside"):
            method(*parts)
    with pytest.raises(StoreError, match="must stay inside"):
        store.write(b"", *parts)
    store.path("a..b", "c.json")


@pytest.mark.parametrize(
    ("key", "value"), [("attempt", "../elsewhere"), ("files", {"../../x": {"size": 1, "sha256": "0"}})]
)
def test_a_manifest_that_points_out_of_the_store_is_not_believed(
    store: Store, caplog: pytest.LogCaptureFixture, key: str, value: object
) -> None:
    manifest = publish(store).model_dump()
    store.write(json.dumps({**manifest, key: value}).encode(), "stages", STAGE.address, MANIFEST)
    broken(store, caplog, "names '../")


def test_a_folder_where_a_file_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweeps" / "a").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"sweeps/a: is a folder where a file should be; move it away"):
        Store(str(tmp_path)).read("sweeps", "a")


def test_what_lies_among_sweeps_and_is_none_is_passed_over(tmp_path: Path) -> None:
    for name in (".DS_Store", "one", "two.1", "-x"):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
    assert [sweep.name for sweep in sweeps_in(Store(str(tmp_path)))] == ["one", "two.1"]


def test_small_objects_are_written_whole_created_once_and_removed(store: Store) -> None:
    assert store.read("a", "b.json") is None
    store.write(b"1", "a", "b.json")
    store.write(b"22", "a", "b.json")
    assert store.read("a", "b.json") == b"22"
    assert not store.create(b"3", "a", "b.json")
    assert store.create(b"3", "a", "c.json")
    assert (store.read("a", "b.json"), store.names("a"), store.names("gone")) == (b"22", ["b.json", "c.json"], [])
    store.remove("a")
    store.remove("a")
    assert store.names("a") == []


# -- the cache of a remote store --------------------------------------------------------------------------------------


def cached_bytes(store: Store) -> int:
    return sum(
        {path.stat().st_ino: path.stat().st_size for path in store._cache.folder.rglob("*") if path.is_file()}.values()
    )


def test_the_least_recently_used_files_leave_the_cache(remote: Store) -> None:
    stages = [make_stage(language) for language in ("ace", "ban", "bjn")]
    for number, stage in enumerate(stages):
        publish(remote, stage, {"x.bin": bytes([number]) * 1000})
    first = remote.fetch(stages[0].address, "x.bin")
    second = remote.fetch(stages[1].address, "x.bin")
    os.utime(second, (1, 1))  # long ago
    third = remote.fetch(stages[2].address, "x.bin")
    assert (first.is_file(), second.is_file(), third.is_file()) == (True, False, True)
    assert cached_bytes(remote) <= 2500
    assert remote.fetch(stages[1].address, "x.bin").read_bytes() == b"\1" * 1000  # fetched again


def test_folders_count_towards_the_size_of_the_cache_and_survive_a_small_one(remote: Store) -> None:
    for number, language in enumerate(("ace", "ban", "bjn")):
        stage = make_stage(language)
        files = {f"model/{part}.bin": bytes([number * 3 + part]) * 800 for part in range(3)}
        publish(remote, stage, files)
        folder = remote.fetch_folder(stage.address, "model")
        assert len(list(folder.iterdir())) == 3
        assert cached_bytes(remote) <= 2500


def test_a_spoilt_cache_is_mended_from_the_store(remote: Store) -> None:
    publish(remote)
    path = remote.fetch(STAGE.address, "scores.json")
    path.write_bytes(b"[7]")
    assert again(remote).fetch(STAGE.address, "scores.json").read_bytes() == b"[1]"
    assert again(remote).intact(STAGE.address)


def test_a_folder_that_another_process_reads_is_not_written_over(remote: Store) -> None:
    publish(remote)
    weights = remote.fetch_folder(STAGE.address, "model") / "weights.bin"
    with weights.open("rb") as reader:
        before = weights.stat().st_ino
        assert again(remote).fetch_folder(STAGE.address, "model") / "weights.bin" == weights
        assert (weights.stat().st_ino, reader.read()) == (before, b"w" * 1000)


# -- checkpoints ------------------------------------------------------------------------------------------------------


def save(checkpoint: Checkpoint, content: bytes) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "made"
        file.write_bytes(content)
        checkpoint.save(file)


def load(checkpoint: Checkpoint) -> bytes | None:
    with TemporaryDirectory() as folder:
        file = checkpoint.load(Path(folder))
        return file.read_bytes() if file is not None else None


def test_the_latest_checkpoint_is_kept_and_the_one_before_dropped(store: Store) -> None:
    checkpoint = Checkpoint(store, STAGE.address)
    assert load(checkpoint) is None
    for content in (b"one", b"two", b"three"):
        save(checkpoint, content)
        assert load(Checkpoint(again(store), STAGE.address)) == content
        assert len(store.names("stages", STAGE.address, "checkpoint")) == 2


@pytest.mark.parametrize("torn", [b"", b"tw", b"TWO"])
def test_a_torn_checkpoint_is_no_checkpoint(store: Store, torn: bytes) -> None:
    checkpoint = Checkpoint(store, STAGE.address)
    save(checkpoint, b"two")
    (name,) = (n for n in store.names("stages", STAGE.address, "checkpoint") if n.endswith(".bin"))
    store.fs.pipe_file(store.path("stages", STAGE.address, "checkpoint", name), torn)
    assert load(checkpoint) is None
    store.remove("stages", STAGE.address, "checkpoint", name)
    assert load(checkpoint) is None
    save(checkpoint, b"three")
    assert load(checkpoint) == b"three"


@pytest.mark.parametrize("torn", [b"", b'{"na', b"[]", b'{"name": "x"}', b"null"])
def test_a_torn_pointer_is_no_checkpoint(store: Store, torn: bytes) -> None:
    checkpoint = Checkpoint(store, STAGE.address)
    save(checkpoint, b"two")
    store.write(torn, "stages", STAGE.address, "checkpoint", "latest.json")
    assert load(checkpoint) is None
    save(checkpoint, b"three")
    assert load(checkpoint) == b"three"


def test_a_crash_while_a_checkpoint_is_written_leaves_the_one_before(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(store, STAGE.address)
    save(checkpoint, b"one")
    write = Store.write

    def die_at_the_pointer(self: Store, content: bytes, *parts: str) -> None:
        if parts[-1] == "latest.json":
            raise KeyboardInterrupt
        write(self, content, *parts)

    monkeypatch.setattr(Store, "write", die_at_the_pointer)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoint, b"two")
    assert load(checkpoint) == b"one"


def test_publishing_drops_the_checkpoint(store: Store) -> None:
    save(Checkpoint(store, STAGE.address), b"one")
    publish(store)
    assert load(Checkpoint(store, STAGE.address)) is None


@pytest.mark.parametrize("url", ["foo://x", "s3x://bucket/y"])
def test_an_unknown_protocol_is_a_clear_error(url: str) -> None:
    with pytest.raises(StoreError, match=rf"{url}: .*(s3|gs)://"):
        Store(url)


def test_a_file_is_no_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file: is a file; a storage is a folder"):
        Store(str(tmp_path / "file"))
