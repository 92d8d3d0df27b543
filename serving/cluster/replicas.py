"""Replicas on Ray Serve: one application each, addressed by name (docs/adr/0001)."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import ray
from msgspec import msgpack
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from assets.base_model.manifest import load_manifest
from assets.content import Blob
from assets.errors import AssetError
from assets.library.resolve import BASE_NAME
from assets.storage.private_folder import keep_private
from assets.storage.signing import Signer
from orchestrator.errors import TierError
from orchestrator.provision import Provisioner
from router.pool import Pool
from serving.bootstrap.secret import platform_secret
from serving.bootstrap.storage import open_store
from serving.bootstrap.tiers import open_provisioner
from serving.cluster.addressing import dispatcher_name, process_identity
from serving.cluster.identity import ProcessIdentity
from serving.cluster.outcome import caught, thrown
from serving.cluster.rpc import (
    PROTOCOL,
    Incompatible,
    Lost,
    NotTaken,
    RemoteError,
    RpcClient,
    RpcError,
    RpcServer,
    check_protocol,
)
from serving.cluster.sealed_settings import SealedSettings, seal
from serving.errors import GenerationFailed, ReplicaDied, ReplicaLost
from serving.generation.contract import (
    Attempt,
    ClusterDirectives,
    GenerationResult,
    Inquiry,
    Phase,
    ReplicaReport,
)
from serving.generation.exchange import received, sent
from serving.logs import configure, log_fields
from serving.settings import Settings

log = logging.getLogger(__name__)

_CALL_S = 5.0
#: Exceeds the router's requests in flight, for calls about the replica.
_MAX_ONGOING = 32


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=_MAX_ONGOING,
    graceful_shutdown_timeout_s=30,
    health_check_period_s=5,
    health_check_timeout_s=10,
)
class ReplicaActor:
    """A replica under Serve, with a warm worker."""

    def __init__(self, sealed: SealedSettings, pool: str, name: str) -> None:
        keep_private()
        settings = sealed.open()
        configure(settings.log_format, settings.log_level)
        report_phase = partial(_report_phase, settings.ray_namespace, pool, name)
        report_phase("process", _process_started_s())
        node = ray.get_runtime_context().get_node_id()
        settings = settings.on_node(node)
        provisioner = open_provisioner(settings)
        address = ray.util.get_node_ip_address()
        _bind_serve_to(address)
        url = provisioner.join(node, address, Signer(platform_secret(settings)))
        provisioner.set_peers({**_peer_nodes(settings.ray_namespace, pool), node: url})
        # While torch and diffusers are imported, for seconds.
        fetch_base(settings, provisioner)
        from serving.bootstrap.engine import open_replica

        report_phase("model")
        self._worker = open_replica(
            settings, name, provisioner, node, url, lambda: report_phase("warm-up")
        )
        self._node_address = address
        self._server = RpcServer(
            process_identity(settings),
            unary={"progress": self._progress},
            streams={"generate": self._generate},
        )

    def _generate(self, message: bytes) -> AsyncIterator[bytes]:
        return sent(partial(self._with_fields, msgpack.decode(message, type=Attempt)))

    async def _with_fields(
        self, attempt: Attempt, emit: Callable[[bytes], None]
    ) -> tuple[GenerationResult, ReplicaReport]:
        task = attempt.task
        with log_fields(request=task.id, tenant=task.tenant_id):
            return await self._worker.generate(task, attempt.detail, emit)

    async def _progress(self, message: bytes) -> bytes:
        return self._worker.progress(msgpack.decode(message, type=Inquiry)) or b""

    async def describe(self, directives: bytes, protocol: str) -> tuple[bytes, str]:
        """Return the worker's report and its RPC address; messages are encoded.

        Raises:
            Incompatible: the dispatcher speaks another major version of the protocol.
        """
        check_protocol(protocol)
        address = await self._server.start(self._node_address)
        report = self._worker.report(msgpack.decode(directives, type=ClusterDirectives))
        return msgpack.encode(report), address

    async def forget(self, keys: Collection[str]) -> bytes:
        return msgpack.encode(await self._worker.forget(keys))

    async def warm(self, blobs: Sequence[Blob]) -> Any:
        return await caught(self._worker.warm(blobs))

    def check_health(self) -> None:
        """Serve replaces a replica that raises."""
        self._worker.check_health()

    async def digest(self) -> str:
        return await self._worker.digest()

    async def __del__(self) -> None:
        """Finish running generations: Serve awaits this, but does not count RPC calls."""
        await self._server.drain()


def _bind_serve_to(host: str) -> None:
    """Bind Serve's unused gRPC ports to ``host``; Serve has no setting."""
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _address: add_port(server, f"{host}:0")


def fetch_base(settings: Settings, provisioner: Provisioner) -> Thread:
    """Fetch the base into the host tier; errors recur in the engine."""

    def fetch() -> None:
        with suppress(AssetError, TierError, OSError):
            for blob in load_manifest(open_store(settings), BASE_NAME).parts.values():
                lease, _ = provisioner.acquire(blob)
                lease.release()

    thread = Thread(target=fetch, name="base", daemon=True)
    thread.start()
    return thread


def _report_phase(
    namespace: str, pool: str, name: str, phase: Phase, at_s: float | None = None
) -> None:
    with suppress(ValueError, RayError):
        dispatcher = ray.get_actor(dispatcher_name(pool), namespace)
        dispatcher.phase_began.remote(name, phase, time.time() if at_s is None else at_s)


def _process_started_s() -> float:
    """Epoch seconds; now, except on Linux."""
    try:
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.time()
    uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - uptime_s


def _peer_nodes(namespace: str, pool: str) -> Mapping[str, str]:
    """Peer URLs by node id; directives update them."""
    try:
        dispatcher = ray.get_actor(dispatcher_name(pool), namespace)
        directives = ray.get(dispatcher.directives.remote(), timeout=_CALL_S)
    except (ValueError, RayError):
        return {}
    return msgpack.decode(directives, type=ClusterDirectives).nodes


class ServeReplicaLauncher:
    """A :class:`~serving.pool.replica_launcher.ReplicaLauncher` of Serve applications.

    A kind of GPU is the node resource ``gpu_KIND`` of Ray's autoscaler (ray_cluster.yaml).
    """

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._identity = process_identity(settings)

    def client(self, name: str) -> ServeReplicaClient:
        return ServeReplicaClient(name, self._identity)

    async def existing(self) -> Sequence[str]:
        return [
            name
            for name, application in (await asyncio.to_thread(serve.status)).applications.items()
            if name.rpartition("-")[0] == self._pool.name
            and application.status != ApplicationStatus.DELETING
        ]

    async def start(self, names: Sequence[str]) -> None:
        await asyncio.to_thread(self._deploy, names)

    def _deploy(self, names: Sequence[str]) -> None:
        deployment: Any = ReplicaActor  # Ray is untyped
        options: dict[str, object] = {"num_cpus": 1, "num_gpus": int(self._needs_gpu())}
        if self._pool.gpu:
            options["resources"] = {f"gpu_{self._pool.gpu}": 1}
        sealed = seal(self._settings)
        targets = [
            serve.RunTarget(
                deployment.options(ray_actor_options=options).bind(sealed, self._pool.name, name),
                name=name,
                route_prefix=None,
            )
            for name in names
        ]
        serve.run_many(targets, blocking=False, wait_for_applications_running=False)

    def _needs_gpu(self) -> bool:
        device = self._settings.device
        if device == "auto":
            return bool(self._pool.gpu) or ray.cluster_resources().get("GPU", 0) > 0
        return device.startswith("cuda")

    async def stop(self, name: str) -> None:
        await asyncio.to_thread(serve.delete, name, _blocking=False)

    async def failed(self, names: Sequence[str]) -> Mapping[str, str]:
        applications = (await asyncio.to_thread(serve.status)).applications
        reasons = {}
        for name in names:
            application = applications.get(name)
            if application is None:
                reasons[name] = "Ray Serve has no such application"
            elif application.status == ApplicationStatus.DEPLOY_FAILED:
                messages = "; ".join(d.message for d in application.deployments.values())
                reasons[name] = messages or application.message
        return reasons


class ServeReplicaClient:
    """A :class:`~serving.pool.replica_state.ReplicaClient`: generations over RPC, the rest over
    Serve.

    Serve waits until the replica is up.
    """

    def __init__(self, name: str, identity: ProcessIdentity) -> None:
        self.id = name
        self._identity = identity
        self._handle: Any = None
        self._rpc: RpcClient | None = None

    async def describe(self, directives: ClusterDirectives) -> ReplicaReport:
        report, address = await self._call("describe", msgpack.encode(directives), PROTOCOL)
        if self._rpc is None or self._rpc.address != address:
            old, self._rpc = self._rpc, RpcClient(address, self._identity)
            if old is not None:
                await old.close()
        return msgpack.decode(report, type=ReplicaReport)

    async def generate(
        self, attempt: Attempt, forward: Callable[[bytes], None]
    ) -> tuple[GenerationResult, ReplicaReport]:
        if self._rpc is None:
            raise ReplicaLost(f"{self.id} has not started yet")
        try:
            events = self._rpc.stream("generate", msgpack.encode(attempt))
            result, report = await received(events, forward)
        except RemoteError as error:
            # It answered: only this request failed.
            raise GenerationFailed(f"the engine failed: {error}") from None
        except Lost:
            raise ReplicaDied(f"{self.id} died during a generation") from None
        except NotTaken as error:
            raise ReplicaLost(f"{self.id}: {error}") from None
        if report is None:
            raise GenerationFailed(f"{self.id} sent no report")
        return result, report

    async def progress(self, inquiry: Inquiry) -> bytes | None:
        if self._rpc is None:
            return None
        try:
            return await self._rpc.call("progress", msgpack.encode(inquiry)) or None
        except RpcError as error:
            raise ReplicaLost(f"{self.id}: {error}") from None

    async def forget(self, keys: Collection[str]) -> ReplicaReport:
        return msgpack.decode(await self._call("forget", keys), type=ReplicaReport)

    async def warm(self, blobs: Sequence[Blob]) -> str:
        return str(thrown(await self._call("warm", blobs)))

    async def digest(self) -> str:
        return str(await self._call("digest"))

    async def _call(self, method: str, *arguments: object) -> Any:
        response = None
        try:
            if self._handle is None:
                loop = asyncio.get_running_loop()
                self._handle = await loop.run_in_executor(None, serve.get_app_handle, self.id)
            response = getattr(self._handle, method).remote(*arguments)
            return await response
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()
            raise
        except RayTaskError as error:
            # A replica of the first release does not know of protocols.
            if method == "describe" and isinstance(error.cause, TypeError | Incompatible):
                reason = f"{self.id} does not speak protocol {PROTOCOL}: it must be restarted"
                log.error("%s", reason)
                raise ReplicaLost(reason) from None
            log.error("%s raised an error in %s", self.id, method, exc_info=error)
            raise ReplicaLost(f"{self.id} failed: {type(error.cause).__name__}") from None
        except (RayServeException, RayError) as error:
            raise ReplicaLost(f"{self.id}: {type(error).__name__}") from None
