"""The Ray Serve application: one bundle behind `/policy/v1`, stateless, with a bearer token.

`build` is the application builder that a Serve config names; `server.serve` runs it on this machine.
"""

# No postponed annotations here: Ray Serve rewrites the signatures of a class's routes, and FastAPI can then
# no longer resolve annotations that are strings.

import hmac
import os
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from ray import serve as ray_serve

from data_pipeline.errors import LiveError, SwingError
from envs.bundle import Bundle, read_bundle
from serving.contract import PREFIX, TOKEN_VARIABLE, DecisionRequest, DecisionResponse, ModelInfo
from serving.policy.decide import decide, feature_set_of, model_info


def _authorised(authorization: str = Header(default="")) -> None:
    expected = f"Bearer {_token()}"
    if not hmac.compare_digest(authorization.encode(), expected.encode()):
        raise HTTPException(401, f"send the token of {TOKEN_VARIABLE} as 'Authorization: Bearer …'")


api = FastAPI(title="swing-rl policy", version="1", dependencies=[Depends(_authorised)])


@api.exception_handler(SwingError)
async def _refuse(_: Request, error: SwingError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=409)


@ray_serve.deployment(max_ongoing_requests=16)
@ray_serve.ingress(api)
class PolicyServer:
    """Holds one verified bundle and remembers nothing between calls."""

    def __init__(self, bundle: str) -> None:
        self.bundle: Bundle = read_bundle(Path(bundle))
        self.features = feature_set_of(self.bundle)

    def check_health(self) -> None:
        """Runs the golden observation again, so that a damaged replica is replaced."""
        self.bundle.check()

    @api.post(f"{PREFIX}/decisions")
    def decisions(self, request: DecisionRequest) -> DecisionResponse:
        """Answers target weights for the session after `as_of_session`."""
        return decide(request, self.bundle, self.features)

    @api.get(f"{PREFIX}/model")
    def model(self) -> ModelInfo:
        """Answers what a client must know to ask well."""
        return model_info(self.bundle)

    @api.get(f"{PREFIX}/ready")
    def ready(self) -> ModelInfo:
        """Answers 200 once the bundle is loaded and verified."""
        return model_info(self.bundle)


def build(args: dict[str, str]) -> Any:
    """Returns the Serve application for `{"bundle": folder}`.

    Raises:
        BundleError: The bundle does not verify; better now than in a replica.
        LiveError: No token in the environment.
    """
    _token()
    bundle = Path(args["bundle"]).resolve()
    feature_set_of(read_bundle(bundle))
    return PolicyServer.bind(str(bundle))  # type: ignore[attr-defined]


def _token() -> str:
    token = os.environ.get(TOKEN_VARIABLE, "")
    if len(token) < 16:
        raise LiveError(f"environment variable {TOKEN_VARIABLE} needs a secret of at least 16 characters")
    return token
