"""The project's app by Mangum alone, as Lambda's own runtime is given it."""

from mangum import Mangum

from tests.bench import ours


handler = Mangum(ours.app, lifespan="off")
