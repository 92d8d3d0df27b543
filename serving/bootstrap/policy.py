"""The content policy and credentials that the settings describe."""

from __future__ import annotations

from serving.errors import Misconfigured
from serving.generation.content_credentials import ContentCredentials
from serving.generation.content_gate import AuditLog, ContentGate
from serving.generation.policy import ContentPolicy, Policies, WordList
from serving.generation.policy_callback import PolicyCallback
from serving.settings import Settings


def open_credentials(settings: Settings) -> ContentCredentials | None:
    """Return what signs images, if anything.

    Raises:
        Misconfigured: it cannot sign.
    """
    if settings.c2pa_certificates is None or settings.c2pa_key is None:
        return None
    return ContentCredentials.from_files(
        settings.c2pa_certificates, settings.c2pa_key, settings.c2pa_timestamp_url
    )


def open_gate(settings: Settings, audit: AuditLog | None = None) -> ContentGate:
    """Return the gate of this process.

    Raises:
        Misconfigured: the file of words cannot be read.
    """
    policies: list[ContentPolicy] = []
    if settings.policy_words is not None:
        try:
            policies.append(WordList.from_file(settings.policy_words))
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"AO_POLICY_WORDS cannot be read: {error}") from None
    if settings.policy_url:
        policies.append(PolicyCallback(settings.policy_url, settings.policy_timeout_s))
    images = settings.policy_images if settings.policy_url else "off"
    return ContentGate(Policies(policies) if policies else None, images, audit)
