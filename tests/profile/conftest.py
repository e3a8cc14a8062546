from tests.profile.zoo_models import zoo as zoo
