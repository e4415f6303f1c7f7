"""What every broker has to do."""

from __future__ import annotations

from celeriac.testing.conformance.fetching import FetchTests
from celeriac.testing.conformance.leases import LeaseTests
from celeriac.testing.conformance.publishing import ExchangeTests, PublishTests, TransactionTests
from celeriac.testing.conformance.settling import SettleTests
from celeriac.testing.conformance.units import UnitTests

__all__ = ["BrokerConformance"]


class BrokerConformance(
    PublishTests, ExchangeTests, TransactionTests, FetchTests, SettleTests, LeaseTests, UnitTests
):
    """The contract of `celeriac.brokers.base` as tests. Subclass it in a test module::

        class TestMyBroker(BrokerConformance):
            @pytest.fixture
            def server(self, tmp_path):
                return f"my://{tmp_path}/queues"

            def open(self, server, options):
                return MyBroker(server, options)

    Tests of what the broker's traits do not promise are skipped. Where it has more to offer, override also
    `open_backend` and ``atomic`` (units in one transaction), `transaction` (``traits.transactional``) and
    `lose_reply`.
    """
