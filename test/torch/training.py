"""Twenty steps of a trainer, with and without the library."""

import copy
import unittest

import torch

from shapes import Gpt, distance, lowrank, train, trained

STEPS = 20


def weights_apart(model, other):
    other = trained(other)
    return max(distance(parameter, other[name]) for name, parameter in trained(model).items())


class Training(unittest.TestCase):
    def both(self, plain, **options):
        model = copy.deepcopy(plain)
        report = lowrank.patch(model, **options)
        self.assertEqual((len(report.adapters), len(report.frozen)), (8, 1))
        return model

    def test_f32(self):
        for kind in ("loralib", "peft"):
            torch.manual_seed(0)
            plain = Gpt(kind)
            model = self.both(plain)
            start = copy.deepcopy(plain)
            wanted, got = train(plain, STEPS), train(model, STEPS)
            for g, t in zip(got, wanted):
                self.assertLess(abs(g - t), 1e-6 * abs(t))
            self.assertLess(weights_apart(model, plain), 1e-5)
            self.assertGreater(weights_apart(start, plain), 1e-2)  # it has learned

    def test_dropout_of_torch(self):
        torch.manual_seed(0)
        plain = Gpt("peft", dropout=0.2)
        model = self.both(plain, dropout="torch")
        torch.manual_seed(4)
        wanted = train(plain, STEPS)
        torch.manual_seed(4)
        got = train(model, STEPS)
        for g, t in zip(got, wanted):
            self.assertLess(abs(g - t), 1e-6 * abs(t))

    def test_bf16_is_as_near_to_f32_as_torch(self):
        """One run's distance is chance, half as much again or as little, so that it is summed over ten."""
        losses_apart, most_apart = {"torch": 0.0, "ours": 0.0}, {"torch": 0.0, "ours": 0.0}
        for seed in range(10):
            torch.manual_seed(seed)
            exact = Gpt()
            plain = copy.deepcopy(exact).to(torch.bfloat16)
            exact = copy.deepcopy(plain).float()
            model = self.both(plain)
            wanted = train(exact, STEPS)
            for name, each in (("torch", plain), ("ours", model)):
                got = train(each, STEPS)
                losses_apart[name] += sum((g - w) ** 2 for g, w in zip(got, wanted))
                most_apart[name] += weights_apart(each, exact) ** 2
        for apart in (losses_apart, most_apart):
            self.assertLess(apart["ours"] ** 0.5, 1.15 * apart["torch"] ** 0.5)

    def test_nf4_is_the_step_on_dequantised_weights(self):
        torch.manual_seed(0)
        plain = Gpt()
        model = self.both(plain, format="nf4", keep_weight=False)
        plain.load_state_dict(model.state_dict())
        wanted, got = train(plain, STEPS), train(model, STEPS)
        for g, t in zip(got, wanted):
            self.assertLess(abs(g - t), 1e-6 * abs(t))
        self.assertLess(weights_apart(model, plain), 1e-5)


if __name__ == "__main__":
    unittest.main()
