from fabric.errors import DataplaneError
from fabric.plan.routes import Route, RouteKey


class FakeFib:
    """Behaves like a FIB, refusals included; it does not record calls."""

    def __init__(self, refuse: dict[RouteKey, int] | None = None) -> None:
        self.routes: dict[RouteKey, Route] = {}
        self.refuse = refuse or {}  # key -> errno, spent on the first attempt

    async def owned_routes(self) -> list[Route]:
        return list(self.routes.values())

    async def replace(self, route: Route) -> None:
        self._maybe_refuse("replace", route.key)
        self.routes[route.key] = route

    async def delete(self, key: RouteKey) -> None:
        self._maybe_refuse("delete", key)
        self.routes.pop(key, None)

    def _maybe_refuse(self, verb: str, key: RouteKey) -> None:
        if code := self.refuse.pop(key, 0):
            raise DataplaneError(f"{verb} {key.prefix}", code)
