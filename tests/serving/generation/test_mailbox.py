"""A bounded queue: its writer never waits, its reader learns of losses."""

from __future__ import annotations

import asyncio

from serving.generation.mailbox import Gap, Mailbox


async def all_of(mailbox: Mailbox[int]) -> list[int | Gap]:
    return [item async for item in mailbox]


async def test_items_arrive_in_order_until_it_is_closed() -> None:
    mailbox: Mailbox[int] = Mailbox(8)
    reading = asyncio.create_task(all_of(mailbox))
    for item in range(5):
        mailbox.put(item)
        await asyncio.sleep(0)
    mailbox.put(5)
    mailbox.close()
    assert await reading == [0, 1, 2, 3, 4, 5]


async def test_a_full_one_is_emptied_and_its_reader_told_so() -> None:
    mailbox: Mailbox[int] = Mailbox(3)
    for item in range(6):
        mailbox.put(item)
    mailbox.close()
    assert await all_of(mailbox) == [Gap.LOST, 4, 5]


async def test_a_reader_hears_of_silence() -> None:
    mailbox: Mailbox[int] = Mailbox(3, idle_s=0.01)
    reading = aiter(mailbox)
    assert await anext(reading) is Gap.IDLE
    mailbox.put(1)
    assert await anext(reading) == 1
    assert await anext(reading) is Gap.IDLE
