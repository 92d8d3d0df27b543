"""Charges stored bytes by the hour."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine, insert, select
from sqlalchemy.orm import Session

from assets.library.references import BlobRecords
from assets.sql.base import alone
from serving.tenants.rows import LedgerRow, TenantRow

_HOUR_S = 3600.0


class StorageMeter:
    def __init__(
        self, engine: Engine, blobs: BlobRecords, now: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._blobs = blobs
        self._now = now

    def charge_hour(self) -> None:
        """Add this hour's missing storage rows; downtime is free."""
        hour = int(self._now() // _HOUR_S)
        with Session(self._engine) as session:
            tenants = session.scalars(select(TenantRow.id)).all()
            references = {f"{tenant}/{hour}": tenant for tenant in tenants}
            done = {
                reference
                for reference in references
                if session.scalar(
                    select(LedgerRow.id).where(
                        LedgerRow.kind == "storage", LedgerRow.reference == reference
                    )
                )
            }
        for reference, tenant in references.items():
            if reference in done:
                continue
            stored = self._blobs.stored_bytes(tenant)
            if stored:
                self._add_storage(tenant, reference, stored)

    def _add_storage(self, tenant_id: str, reference: str, stored_bytes: int) -> None:
        with Session(self._engine) as session, session.begin():
            alone(session, tenant_id)
            charged = (LedgerRow.kind == "storage", LedgerRow.reference == reference)
            if session.scalar(select(LedgerRow.id).where(*charged)) is None:
                session.execute(
                    insert(LedgerRow).values(
                        at_s=self._now(), tenant_id=tenant_id, member_id="", key_id="",
                        kind="storage", reference=reference, quantity=stored_bytes / 1e9,
                        details={"bytes": stored_bytes},
                    )
                )  # fmt: skip
