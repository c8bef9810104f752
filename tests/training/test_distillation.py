"""Distillation: the losses, and a Trainer that adds them."""

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, TrainingArguments

from hf_ext.training.distillation import (
    DistillationTrainer,
    attention_loss,
    distillation_loss,
    feature_loss,
    relation_loss,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_without_a_share_of_the_teacher_it_is_cross_entropy():
    student, labels = draw(6, 5), torch.arange(6) % 5
    torch.testing.assert_close(
        distillation_loss(student, draw(6, 5), labels, alpha=0.0), F.cross_entropy(student, labels)
    )


def test_a_student_like_its_teacher_has_no_soft_loss():
    logits, labels = draw(6, 5), torch.arange(6) % 5
    assert distillation_loss(logits, logits, labels, alpha=1.0).abs() < 1e-6


def test_tokens_without_a_label_count_nowhere():
    student, teacher, labels = draw(2, 4, 5), draw(2, 4, 5, seed=1), torch.tensor([[1, 2, -100, -100], [3, -100, 0, 1]])
    kept = labels != -100
    expected = distillation_loss(student[kept], teacher[kept], labels[kept])
    torch.testing.assert_close(distillation_loss(student, teacher, labels), expected)


def test_hard_distillation_learns_the_teachers_decision():
    student, teacher, labels = draw(6, 5), draw(6, 5, seed=1), torch.zeros(6, dtype=torch.long)
    expected = F.cross_entropy(student, teacher.argmax(-1))
    torch.testing.assert_close(distillation_loss(student, teacher, labels, alpha=1.0, hard=True), expected)


@pytest.mark.parametrize(
    "arguments",
    [
        (draw(6, 5), draw(6, 4), torch.zeros(6).long()),
        (draw(6, 5), draw(6, 5), torch.zeros(5).long()),
        (draw(6, 5), draw(6, 5), torch.zeros(6).long(), 0.0),
        (draw(6, 5), draw(6, 5), torch.zeros(6).long(), 1.0, 1.5),
    ],
)
def test_what_does_not_fit_is_refused(arguments):
    with pytest.raises(ValueError, match="got"):
        distillation_loss(*arguments)


def test_losses_of_states_vanish_where_student_and_teacher_are_alike():
    states, maps = draw(2, 6, 8), draw(2, 4, 6, 6).softmax(-1)
    assert feature_loss(states, states) == 0 and attention_loss(maps, maps).abs() < 1e-6
    assert relation_loss(states, states, 2).abs() < 1e-6


def test_relations_compare_models_of_different_widths():
    assert relation_loss(draw(2, 6, 8), draw(2, 6, 24, seed=1), heads=4) > 0


def test_attention_maps_of_other_numbers_of_heads_are_compared_by_their_mean():
    assert attention_loss(draw(2, 4, 6, 6).softmax(-1), draw(2, 8, 6, 6, seed=1).softmax(-1)) > 0


def arguments(folder, steps=40):
    return TrainingArguments(
        str(folder), max_steps=steps, learning_rate=1e-2, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_steps=steps, per_device_train_batch_size=16,
    )  # fmt: skip


def test_trainer_brings_a_classifier_to_its_teacher(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "num_attention_heads": 2, "max_position_embeddings": 16}
    teacher = BertForSequenceClassification(
        BertConfig(hidden_size=16, num_hidden_layers=1, intermediate_size=16, **sizes)
    )
    student = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, intermediate_size=8, **sizes)
    )
    teacher.classifier.weight.data *= 40
    ids = torch.randint(0, 20, (64, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = teacher.eval()(ids).logits.argmax(-1)
    rows = [{"input_ids": i, "labels": label} for i, label in zip(ids, labels)]
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    DistillationTrainer(model=student, teacher=teacher, args=arguments(tmp_path), train_dataset=rows, alpha=0.9).train()
    with torch.no_grad():
        agreement = (student.eval()(ids).logits.argmax(-1) == labels).float().mean()
    assert agreement > 0.8
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())


def test_language_models_are_compared_at_the_token_before_the_label(tmp_path):
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    student, teacher = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    ids = torch.randint(3, 20, (4, 8))
    trainer = DistillationTrainer(model=student, teacher=teacher, args=arguments(tmp_path), alpha=0.0)
    loss = trainer.compute_loss(student, {"input_ids": ids, "labels": ids})
    torch.testing.assert_close(loss, student(ids, labels=ids).loss)


def test_a_batch_without_labels_is_refused(tmp_path):
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    trainer = DistillationTrainer(
        model=GPT2LMHeadModel(config), teacher=GPT2LMHeadModel(config), args=arguments(tmp_path)
    )
    with pytest.raises(ValueError, match="labels"):
        trainer.compute_loss(trainer.model, {"input_ids": torch.randint(3, 20, (4, 8))})
