"""The content policy that the settings describe."""

from __future__ import annotations

from serving.generation.content_gate import AuditLog, ContentGate
from serving.generation.policy import ContentPolicy, Policies, WordList
from serving.generation.policy_callback import PolicyCallback
from serving.settings import Settings


def open_gate(settings: Settings, audit: AuditLog) -> ContentGate:
    """Return the gate of this process.

    Raises:
        OSError: the file of words cannot be read.
    """
    policies: list[ContentPolicy] = []
    if settings.policy_words is not None:
        policies.append(WordList.from_file(settings.policy_words))
    if settings.policy_url:
        policies.append(PolicyCallback(settings.policy_url, settings.policy_timeout_s))
    images = settings.policy_images if settings.policy_url else "off"
    return ContentGate(Policies(policies), images, audit)
