from tests.unit.gateway.fleet_bed import bed as bed
