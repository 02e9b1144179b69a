"""Bodies are bounded together: the largest that is still arriving gives way."""

import asyncio

import pytest
from starlette.exceptions import HTTPException

from timm_stitch.deployment.serving.bodies import BodyBudget
from timm_stitch.deployment.serving.engine import OverloadError


async def endless(parts):
    for part in parts:
        yield part
    await asyncio.sleep(60)


async def whole(*parts):
    for part in parts:
        yield part


async def read(budget, stream, most=1000, seconds=30.0):
    with budget.body() as body:
        return await body.read(stream, most, seconds)


def test_the_largest_body_gives_way_to_small_ones():
    async def run():
        budget = BodyBudget(100)
        large = asyncio.create_task(read(budget, endless([bytes(60)])))
        middle = asyncio.create_task(read(budget, endless([bytes(30)])))
        await asyncio.sleep(0.01)
        assert budget.used == 90
        assert await read(budget, whole(b"a" * 10, b"b" * 10)) == b"a" * 10 + b"b" * 10
        with pytest.raises(OverloadError, match="bodies of 100 bytes are being read"):
            await large
        assert budget.used == 30
        with pytest.raises(OverloadError):  # it is the largest itself
            await read(budget, whole(bytes(90)))
        middle.cancel()
        with pytest.raises(asyncio.CancelledError):
            await middle
        assert budget.used == 0

    asyncio.run(run())


def test_bodies_count_until_their_request_is_answered():
    async def run():
        budget = BodyBudget(100)
        with budget.body() as body:
            assert await body.read(whole(bytes(80)), 1000, 30.0) == bytes(80)
            with pytest.raises(OverloadError):
                await read(budget, whole(bytes(30)))
        assert await read(budget, whole(bytes(30))) == bytes(30)

    asyncio.run(run())


def test_one_body_is_bounded_in_bytes_and_time():
    async def run():
        budget = BodyBudget(10_000)
        with pytest.raises(HTTPException, match="413"):
            await read(budget, whole(bytes(600), bytes(600)))
        with pytest.raises(HTTPException, match="408"):
            await read(budget, endless([b"a"]), seconds=0.01)
        assert budget.used == 0

    asyncio.run(run())
